"""Images to tokens."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
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
