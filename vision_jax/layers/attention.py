"""Multi-head self-attention over tokens (Vaswani et al., 2017, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.weighing import shift, weigh
from vision_jax.parameters import param, trunc_normal, zeros


class QKV(nnx.Module):
    """Queries, keys and values: [..., C] -> three [..., heads, head_dim].

    The kernel is stored [C, 3, heads, head_dim] and applied as three products: the heads can be split over a mesh axis
    without gathering anything, which a fused (C, 3C) kernel cannot.

    Args:
      dim: channels in.
      num_heads, head_dim: shape of the result.
      bias: whether a bias is added.
      init, bias_init: initialisers.
      dtype: dtype of the computation.
    """

    parts = 3
    biased = (0, 1, 2)  # those that have a bias, where there is any

    def __init__(
        self, dim, num_heads, head_dim, *, bias=True, init=trunc_normal, bias_init=zeros, dtype=jnp.float32
    ):  # fmt: skip
        self.dtype, fans = dtype, (dim, self.parts * num_heads * head_dim)
        self.kernel = param((dim, self.parts, num_heads, head_dim), init, fans)
        self.bias = param((len(self.biased), num_heads, head_dim), bias_init, fans) if bias else None

    def __call__(self, *inputs):
        """One input for all, or one each for queries, keys and values, whose tokens may differ in number."""
        inputs = inputs if len(inputs) > 1 else inputs * self.parts
        return [self.project(x, i) for i, x in enumerate(inputs)]

    def project(self, x, i):
        """One of them alone: 0 for queries, 1 for keys, 2 for values."""
        # One product over heads and channels together: the result then lies in memory as kernels read it.
        kernel = self.kernel[:, i]
        y = weigh(jnp.matmul, x, kernel.reshape(len(kernel), -1), self.dtype)
        if self.bias is not None and i in self.biased:
            y = shift(y, self.bias[self.biased.index(i)].reshape(-1))
        return y.reshape(*x.shape[:-1], *kernel.shape[1:])


class FreeKeysQKV(QKV):
    """The same, but keys have no bias: softmax would take it away (BEiT: Bao et al., 2021, arXiv:2106.08254)."""

    biased = (0, 2)


class HeadsFirstQKV(QKV):
    """The same; weight files of the reference hold each head's query, key and value together."""


class ConvQKV(QKV):
    """The same; weight files of the reference hold a 1x1 convolution."""


class HeadsFirstConvQKV(ConvQKV):
    """The same; weight files hold a 1x1 convolution to each head's query, key and value together."""


class KV(QKV):
    """Keys and values, where the queries come from other tokens: [..., C] -> two [..., heads, head_dim]."""

    parts = 2
    biased = (0, 1)


class Values(QKV):
    """Values alone, where the scores are known: [..., C] -> a list of one [..., heads, head_dim]."""

    parts = 1
    biased = (0,)


class GatedQKV(ConvQKV):
    """Queries, keys, values and a gate, [..., C] -> four [..., heads, head_dim].

    Weight files of the reference hold a 1x1 convolution.
    """

    parts = 4
    biased = (0, 1, 2, 3)


class WideQKV(nnx.Module):
    """Queries, keys and wider values: [..., C] -> two [..., heads, key_dim] and one [..., heads, value_dim].

    The kernel is stored [C, heads, 2 key_dim + value_dim]; one product gives all.

    Args:
      dim: channels in.
      num_heads, key_dim, value_dim: shape of the results.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, num_heads, key_dim, value_dim, *, dtype=jnp.float32):
        self.key_dim, self.dtype = key_dim, dtype
        width = 2 * key_dim + value_dim
        self.kernel = param((dim, num_heads, width), trunc_normal, (dim, num_heads * width))
        self.bias = param((num_heads, width), zeros)

    def __call__(self, x):
        kernel = self.kernel[...]
        y = weigh(jnp.matmul, x, kernel.reshape(len(kernel), -1), self.dtype)
        y = shift(y.reshape(*x.shape[:-1], *kernel.shape[1:]), self.bias[...])
        return jnp.split(y, [self.key_dim, 2 * self.key_dim], axis=-1)


class Attention(nnx.Module):
    """Self-attention of tokens or pixels, [B, ..., C] -> [B, ..., C].

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      qkv_bias: whether the projections to queries, keys and values have a bias.
      proj_bias: whether the projection of the result has a bias.
      qk_norm: a norm `(head_dim) -> module` on queries and keys, or None.
      rotary: turns queries and keys, [B, N, heads, head_dim], *context -> the same, or None; hashable.
      rel_pos: called as rel_pos(train, *context), gives [heads, N, N], which the scores gain; or None.
      norm: a norm `(dim) -> module` on the result before its projection, or None.
      attn_drop, proj_drop: dropout of the attention weights and of the result.
      qkv, linear: what makes the projections, a `QKV` and a `Linear`.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(
        self, dim, num_heads, *, qkv_bias=True, proj_bias=True, qk_norm=None, rotary=None, rel_pos=None, norm=None,
        attn_drop=0.0, proj_drop=0.0, qkv=QKV, linear=Linear, dtype=jnp.float32,
    ):  # fmt: skip
        self.attn_drop, self.proj_drop, self.rotary, self.rel_pos = attn_drop, proj_drop, rotary, rel_pos
        head_dim = dim // num_heads
        self.qkv = qkv(dim, num_heads, head_dim, bias=qkv_bias, dtype=dtype)
        self.q_norm, self.k_norm = (qk_norm(head_dim), qk_norm(head_dim)) if qk_norm else (None, None)
        self.norm = norm(dim) if norm else None
        self.proj = linear(dim, dim, bias=proj_bias, dtype=dtype)

    def __call__(self, x, train=None, *context):
        q, k, v = self.qkv(x.reshape(x.shape[0], -1, x.shape[-1]))
        if self.q_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = self.rotary(q, *context), self.rotary(k, *context)
        out = self.weigh_values(q, k, v, train, *context).reshape(x.shape)
        return dropout(self.proj(self.norm(out) if self.norm else out), self.proj_drop, train)

    def weigh_values(self, q, k, v, train=None, *context):
        """Queries, keys and values, [B, N, heads, head_dim] each -> the same for the heads' results."""
        bias = self.rel_pos(train, *context) if self.rel_pos else None
        probabilities = tap(self, "probabilities", attention_probabilities(q, k, bias=bias))
        return aggregate(dropout(probabilities, self.attn_drop, train), v)


def attention_scores(q, k, scale=None):
    """q k^T scale, at least float32.

    Args:
      q: [B, Nq, heads, head_dim].
      k: [B, Nk, heads, head_dim].
      scale: head_dim ** -0.5 by default.

    Returns:
      [B, heads, Nq, Nk].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) * scale


def attention_probabilities(q, k, scale=None, bias=None):
    """The softmax of the scores over the keys, [B, heads, Nq, Nk]; `bias` [heads, Nq, Nk] is added to them before."""
    scores = attention_scores(q, k, scale)
    return jax.nn.softmax(scores if bias is None else scores + bias.astype(scores.dtype), axis=-1)


def aggregate(probabilities, v):
    """The keys' values weighted, [B, heads, Nq, Nk] and [B, Nk, heads, d] -> [B, Nq, heads, d]."""
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(v.dtype), v)
