"""Attention to the neighborhood of each pixel. Windows and dilation are in `kernels.neighborhood_attention`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.functional import offer
from vision_jax.kernels import neighborhood_attention, neighborhood_scores
from vision_jax.layers.attention import QKV
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout
from vision_jax.layers.interpolate import bicubic
from vision_jax.layers.linear import Linear
from vision_jax.parameters import param, trunc_normal


class NeighborhoodAttention(nnx.Module):
    """Self-attention to the nearest neighbours with a learned bias for each offset, [B, H, W, C] -> [B, H, W, C].

    softmax(q k^T / sqrt(d) + bias) v (NAT: Hassani et al., 2022, arXiv:2204.07143, equations 2 to 4); with a dilation
    the neighbours lie that far apart (DiNAT: Hassani & Shi, 2022, arXiv:2209.15001, section 3). A map smaller than
    kernel_size * dilation gets zeros below and to the right before the projection, whose bias makes keys of them: as
    the released code did when its weights were trained.

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      kernel_size: neighbours along an axis, odd; an int or (rows, columns).
      dilation: distance of the neighbours, an int or (rows, columns).
      proj_drop: dropout of the result.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, dim, num_heads, kernel_size, dilation=1, *, proj_drop=0.0, dtype=jnp.float32):
        self.kernel_size, self.dilation, self.proj_drop = pair(kernel_size), pair(dilation), proj_drop
        self.qkv = QKV(dim, num_heads, dim // num_heads, dtype=dtype)
        self.rpb = param((num_heads, *(2 * k - 1 for k in self.kernel_size)), trunc_normal)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        H, W = x.shape[1:3]
        least = (k * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
        pads = [(0, max(0, n - size)) for n, size in zip(least, (H, W), strict=True)]
        q, k, v = self.qkv(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        options = dict(kernel_size=self.kernel_size, dilation=self.dilation, bias=self.rpb[...])
        offer(self, "probabilities", lambda: jax.nn.softmax(neighborhood_scores(q, k, **options)[:, :H, :W], axis=-1))
        out = neighborhood_attention(q, k, v, **options)[:, :H, :W]
        return dropout(self.proj(out.reshape(x.shape)), self.proj_drop, train)

    def resample(self, leaf, array):
        """A bias made for another kernel size, at this one's: bicubic, as the authors' (and Swin's) released code."""
        if leaf != "rpb":
            return array
        return np.asarray(bicubic(jnp.asarray(array)[..., None], self.rpb.shape[1:])[..., 0])
