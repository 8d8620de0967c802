"""Attention of more heads of queries than of keys and values."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import KV, aggregate, attention_probabilities
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear


class GroupedQueryAttention(nnx.Module):
    """Self-attention in which neighbouring heads share keys and values, [B, N, C] -> [B, N, C].

    GQA (Ainslie et al., 2023, arXiv:2305.13245, section 2.2).

    Args:
      dim: channels.
      num_heads: heads of queries; divides dim.
      num_kv_heads: heads of keys and values; divides num_heads.
      qkv_bias: whether the projections to queries, keys and values have a bias.
      qk_norm: a norm `(head_dim) -> module` on queries and keys, or None.
      rotary: turns queries and keys, [B, N, heads, head_dim], *context -> the same, or None; hashable.
      attn_drop, proj_drop: dropout of the attention weights and of the result.
      linear: what makes the projection of the result, a `Linear`.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(
        self, dim, num_heads, num_kv_heads, *, qkv_bias=True, qk_norm=None, rotary=None, attn_drop=0.0, proj_drop=0.0,
        linear=Linear, dtype=jnp.float32,
    ):  # fmt: skip
        self.num_heads, self.shared, self.rotary = num_heads, num_heads // num_kv_heads, rotary
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        head_dim = dim // num_heads
        self.q = Linear(dim, dim, bias=qkv_bias, dtype=dtype)
        self.kv = KV(dim, num_kv_heads, head_dim, bias=qkv_bias, dtype=dtype)
        self.q_norm, self.k_norm = (qk_norm(head_dim), qk_norm(head_dim)) if qk_norm else (None, None)
        self.proj = linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None, *context):
        q, (k, v) = self.q(x).reshape(*x.shape[:2], self.num_heads, -1), self.kv(x)
        if self.q_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = self.rotary(q, *context), self.rotary(k, *context)
        k, v = (jnp.repeat(part, self.shared, axis=2) for part in (k, v))
        probabilities = tap(self, "probabilities", attention_probabilities(q, k))
        out = aggregate(dropout(probabilities, self.attn_drop, train), v).reshape(x.shape)
        return dropout(self.proj(out), self.proj_drop, train)
