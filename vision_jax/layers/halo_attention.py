"""Attention of blocks of a map to themselves and to what lies around them."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.kernels import window_attention
from vision_jax.layers.conv import Conv
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.relative_query import RelativeQueryBias
from vision_jax.parameters import Normal


class HaloAttention(nnx.Module):
    """Blocked local self-attention, [B, H, W, C] -> [B, H/stride, W/stride, C].

    HaloNet (Vaswani et al., 2021, arXiv:2103.12731, sections 2.2 and 2.3), as timm has it: each window attends to
    itself and its halo, beyond the map to zeros; a stride leaves out queries. No projection follows.

    Args:
      dim: channels.
      num_heads, key_dim: heads, and channels of a head's queries and keys; its values have dim / num_heads.
      window_size: side of a window; divides H and W.
      halo: tokens around it that are keys too.
      stride: of the queries; divides window_size.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, dim, num_heads, key_dim, *, window_size, halo, stride=1, dtype=jnp.float32):
        self.num_heads, self.key_dim, self.window_size, self.halo = num_heads, key_dim, window_size, halo
        kw = dict(bias=False, init=Normal(dim**-0.5, limit=2.0), dtype=dtype)
        keys = num_heads * key_dim
        self.q = Conv(dim, keys, 1, stride=stride, **kw) if stride > 1 else PointwiseConv(dim, keys, **kw)
        self.kv = PointwiseConv(dim, keys + dim, **kw)
        side, key_side = window_size // stride, window_size + 2 * halo
        self.pos_embed = RelativeQueryBias((side, side), (key_side, key_side), key_dim)

    def __call__(self, x, train=None):
        q, kv = (y.reshape(*y.shape[:3], self.num_heads, -1) for y in (self.q(x), self.kv(x)))
        k, v = jnp.split(kv, [self.key_dim], axis=-1)
        out = window_attention(
            q, k, v, window_size=self.window_size, halo=self.halo, border="zero", query_bias=self.pos_embed()
        )
        return out.reshape(*out.shape[:3], -1)
