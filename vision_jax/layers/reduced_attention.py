"""Attention whose keys and values come from a smaller map: spatial-reduction attention of the pyramid transformers."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.functional import tap
from vision_jax.layers.attention import KV, aggregate, attention_probabilities
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.pooling import adaptive_avg_pool
from vision_jax.parameters import trunc_normal, zeros


class ReducedAttention(nnx.Module):
    """Spatial-reduction attention, [B, H, W, C] -> [B, H, W, C].

    PVT (Wang et al., 2021, arXiv:2102.12122, equations 1 to 3).

    Every position asks, and the keys are those of a map shrunk `reduction` times along each axis by a convolution. With
    `pool` they are those of the map averaged to pool x pool, at a cost linear in its size (PVT v2: arXiv:2106.13797,
    section 3.1). Without either it is plain attention, for tokens [B, N, C] too.

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      reduction: kernel size and stride of the shrinking convolution; rows and columns left over are not seen.
      pool: side of the averaged map, instead of `reduction`; or None.
      qkv_bias: whether the projections to queries, keys and values have a bias.
      attn_drop, proj_drop: dropout of the attention weights and of the result.
      init, bias_init: initialisers of the reducing convolution.
      dtype: dtype of the computation; the softmax is at least float32.

    Raises:
      InputError: when called with a map that the reduction leaves empty.
    """

    def __init__(
        self, dim, num_heads, *, reduction=1, pool=None, qkv_bias=True, attn_drop=0.0, proj_drop=0.0,
        init=trunc_normal, bias_init=zeros, dtype=jnp.float32,
    ):  # fmt: skip
        self.num_heads, self.reduction, self.pool = num_heads, reduction, pool
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.q = Linear(dim, dim, bias=qkv_bias, dtype=dtype)
        self.kv = KV(dim, num_heads, dim // num_heads, bias=qkv_bias, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)
        if pool:
            self.sr = PointwiseConv(dim, dim, init=init, bias_init=bias_init, dtype=dtype)
        elif reduction > 1:
            kw = dict(init=init, bias_init=bias_init, dtype=dtype)
            self.sr = Conv(dim, dim, reduction, stride=reduction, padding=0, **kw)
        else:
            self.sr = None
        self.norm = LayerNorm(dim, epsilon=1e-5, dtype=dtype) if self.sr else None

    def __call__(self, x, train=None):
        B, C = x.shape[0], x.shape[-1]
        q = self.q(x).reshape(B, -1, self.num_heads, C // self.num_heads)
        k, v = self.kv(self.reduced(x).reshape(B, -1, C))
        probabilities = tap(self, "probabilities", attention_probabilities(q, k))
        out = aggregate(dropout(probabilities, self.attn_drop, train), v)
        return dropout(self.proj(out.reshape(x.shape)), self.proj_drop, train)

    def reduced(self, x):
        """The map that the keys and values are projected from."""
        if self.pool:
            return gelu(self.norm(self.sr(adaptive_avg_pool(x, self.pool))))
        if self.sr is None:
            return x
        if min(x.shape[1:3]) < self.reduction:
            raise InputError(
                f"a map of {x.shape[1]} x {x.shape[2]} is below reduction={self.reduction}: give larger images"
            )
        return self.norm(self.sr(x))
