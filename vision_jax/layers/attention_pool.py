"""Pooling by attention with a learned query."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.attention import KV, aggregate, attention_probabilities
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.parameters import Normal, param


class AttentionPoolLatent(nnx.Module):
    """A learned token attends to all others and passes a residual MLP, [B, N, C] -> [B, C].

    The MAP head of Scaling Vision Transformers (Zhai et al., 2022, arXiv:2106.04560), after Set Transformer (Lee et
    al., 2019, arXiv:1810.00825, equation 11) with one seed vector.

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      hidden: features inside the MLP.
      norm: `(dim) -> module`, before the MLP.
      act: activation of the MLP.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, num_heads, hidden, *, norm, act=gelu, dtype=jnp.float32):
        self.num_heads = num_heads
        self.latent = param((1, 1, dim), Normal(dim**-0.5, limit=2 * dim**-0.5))
        self.q, self.kv = Linear(dim, dim, dtype=dtype), KV(dim, num_heads, dim // num_heads, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)
        self.norm, self.mlp = norm(dim), Mlp(dim, hidden, act=act, dtype=dtype)

    def __call__(self, x):
        B, _, C = x.shape
        q = self.q(self.latent[...]).reshape(1, 1, self.num_heads, -1)
        k, v = self.kv(x)
        q = jnp.broadcast_to(q, (B, *q.shape[1:]))
        x = self.proj(aggregate(attention_probabilities(q, k), v).reshape(B, C))
        return x + self.mlp(self.norm(x))
