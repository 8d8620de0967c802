"""Images to tokens."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import normalise
from vision_jax.parameters import torch_default


class PatchEmbed(nnx.Module):
    """Cuts an image into patches and projects each, [B, H, W, C] -> [B, H/p, W/p, dim].

    ViT (Dosovitskiy et al., 2021, arXiv:2010.11929, equation 1). A stride below the patch size makes the patches
    overlap (PVT v2: Wang et al., 2022, arXiv:2106.13797, section 3.2).
    """

    def __init__(
        self, channels, dim, patch_size, *, stride=None, padding=0, bias=True, norm=None, init=torch_default,
        bias_init=torch_default, dtype=jnp.float32,
    ):  # fmt: skip
        self.proj = Conv(
            channels, dim, patch_size, stride=stride or patch_size, padding=padding, bias=bias, init=init,
            bias_init=bias_init, dtype=dtype,
        )  # fmt: skip
        self.norm = norm(dim) if norm else None

    def __call__(self, x):
        x = self.proj(x)
        return self.norm(x) if self.norm else x


class PatchMerging(nnx.Module):
    """Halves a map, [B, H, W, din] -> [B, ceil(H/2), ceil(W/2), dout] (Swin: arXiv:2103.14030, section 3.1).

    Four neighbours side by side, column by column, then a projection. A map of odd size gets zeros below and to the
    right.

    Args:
      din, dout: channels in and out.
      norm: `(dim) -> module`.
      norm_last: normalise after the projection (Swin V2), not before it.
      linear: what makes the projection, a `Linear`.
      dtype: dtype of the computation.
    """

    def __init__(self, din, dout, *, norm, norm_last=False, linear=Linear, dtype=jnp.float32):
        self.norm_last = norm_last
        self.norm = norm(dout if norm_last else 4 * din)
        self.reduction = linear(4 * din, dout, bias=False, dtype=dtype)

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        x = jnp.pad(x, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
        x = x.reshape(B, -(-H // 2), 2, -(-W // 2), 2, C).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(*x.shape[:3], 4 * C)
        if self.norm_last:
            return normalise(self.norm, self.reduction(x), train)
        return self.reduction(normalise(self.norm, x, train))
