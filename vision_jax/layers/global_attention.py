"""Attention of a whole map to itself, with relative positions."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.kernels import window_attention
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.relative_query import RelativeQueryBias
from vision_jax.parameters import Normal


class GlobalAttention(nnx.Module):
    """All-to-all self-attention with 2-D relative positions, [B, H, W, C] -> [B, H, W, C].

    BoTNet (Srinivas et al., 2021, arXiv:2101.11605, section 3 and figure 4). No projection follows.

    Args:
      dim: channels.
      num_heads, key_dim: heads, and channels of a head's queries and keys; its values have dim / num_heads.
      size: (H, W) of the map; the tables of positions are made for it.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, dim, num_heads, key_dim, *, size, dtype=jnp.float32):
        self.num_heads, self.size, keys = num_heads, size, num_heads * key_dim
        self.splits = (keys, 2 * keys)
        init = Normal(dim**-0.5, limit=2.0)
        self.qkv = PointwiseConv(dim, 2 * keys + dim, bias=False, init=init, dtype=dtype)
        self.pos_embed = RelativeQueryBias(size, size, key_dim)

    def __call__(self, x, train=None):
        parts = jnp.split(self.qkv(x), self.splits, axis=-1)
        q, k, v = (part.reshape(*part.shape[:3], self.num_heads, -1) for part in parts)
        return window_attention(q, k, v, window_size=self.size, query_bias=self.pos_embed()).reshape(x.shape)
