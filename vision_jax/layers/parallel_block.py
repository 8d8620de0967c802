"""Residual blocks whose branches run side by side, not one after the other."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import aggregate, attention_probabilities
from vision_jax.layers.differential_attention import Difference
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import gelu
from vision_jax.layers.scale import LayerScale
from vision_jax.mesh import constrain_batch, split_tokens
from vision_jax.parameters import param, zeros


class ParallelBlock(nnx.Module):
    """x + drop_path(scale(attention(y) + mlp(y))), y = norm(x), [B, N, C] -> [B, N, C].

    ViT-22B (Dehghani et al., 2023, arXiv:2302.05442, section 2): the first products of both branches are one, [C,
    hidden + 3 C]: the MLP's hidden features, then queries, keys and values. With `differential`, whose weights are of
    a `Difference` and whose context is the block's l0, the last products are one too (timm's).

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      hidden: hidden features of the MLP.
      norm: `(dim) -> module`.
      in_bias: whether the first product has a bias; without one the hidden features alone have.
      qk_norm: a norm `(head_dim) -> module` on queries and keys, or None.
      differential: weigh by the difference of two softmaxes.
      act: the MLP's activation.
      layer_scale: initial value of the branches' common scale, or None for no scale.
      attn_drop, hidden_drop: dropout of the attention weights and of the activated hidden features.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(
        self, dim, num_heads, hidden, *, norm, in_bias=True, qk_norm=None, differential=False, act=gelu,
        layer_scale=None, attn_drop=0.0, hidden_drop=0.0, dtype=jnp.float32,
    ):  # fmt: skip
        self.num_heads, self.hidden, self.act = num_heads, hidden, act
        self.attn_drop, self.hidden_drop = attn_drop, hidden_drop
        head_dim = dim // num_heads
        self.in_norm, self.in_proj = norm(dim), Linear(dim, hidden + 3 * dim, bias=in_bias, dtype=dtype)
        self.mlp_bias = None if in_bias else param((hidden,), zeros)
        self.q_norm, self.k_norm = (qk_norm(head_dim), qk_norm(head_dim)) if qk_norm else (None, None)
        self.difference = Difference(head_dim, attn_drop=attn_drop, dtype=dtype) if differential else None
        self.out_proj = Linear(dim + hidden, dim, dtype=dtype) if differential else None
        self.attn_out_proj, self.mlp_out_proj = (
            (None, None) if differential else (Linear(dim, dim, dtype=dtype), Linear(hidden, dim, dtype=dtype))
        )
        self.ls = None if layer_scale is None else LayerScale(dim, layer_scale, dtype=dtype)

    def __call__(self, x, train=None, *context):
        y = self.in_proj(self.in_norm(x))
        features, qkv = y[..., : self.hidden], y[..., self.hidden :]
        if self.mlp_bias is not None:
            features = features + self.mlp_bias[...].astype(y.dtype)
        attended = self.attend(*jnp.split(qkv, 3, axis=-1), train, *context)
        features = dropout(self.act(features), self.hidden_drop, train)
        if self.out_proj:
            y = self.out_proj(jnp.concatenate([attended, features], axis=-1))
        else:
            y = tap(self, "attn", self.attn_out_proj(attended)) + tap(self, "mlp", self.mlp_out_proj(features))
        x = x + drop_path(self.ls(y) if self.ls else y, train)
        return tap(self, "output", constrain_batch(x))

    def attend(self, q, k, v, train=None, *context):
        """Queries, keys and values, [B, N, C] each -> the heads' results side by side, [B, N, C]."""
        shape = v.shape
        q, k, v = (part.reshape(*shape[:2], self.num_heads, -1) for part in (q, k, v))
        if self.q_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.difference:
            return self.difference(q, k, v, *context, train).reshape(shape)
        probabilities = tap(self, "probabilities", attention_probabilities(q, k))
        return aggregate(dropout(probabilities, self.attn_drop, train), v).reshape(shape)


class Branch(nnx.Module):
    """drop_path(scale(mixer(norm(x)))), [B, N, C] -> [B, N, C]; `kind`, "attn" or "mlp", names the mixer."""

    def __init__(self, dim, kind, mixer, *, norm, layer_scale, dtype):
        self.kind, self.norm = kind, norm(dim)
        setattr(self, kind, mixer)
        self.ls = None if layer_scale is None else LayerScale(dim, layer_scale, dtype=dtype)

    def __call__(self, x, train=None, *context):
        y = getattr(self, self.kind)(self.norm(x), train, *context)
        return drop_path(self.ls(y) if self.ls else y, train)


class WideBlock(nnx.Module):
    """Several token mixers side by side, each with its own norm, then as many MLPs: [B, N, C] -> [B, N, C].

    Three things everyone should know about Vision Transformers (Touvron et al., 2022, arXiv:2203.09795, equation 2):
    as good as so many blocks in a row, and less deep.

    Args:
      dim: channels.
      attns: the token mixers, called as attn(x, train, *context); mlps: the channel mixers, called as mlp(x, train).
      norm: `(dim) -> module`.
      layer_scale: initial value of the branches' scales, or None for no scales.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, *, attns, mlps, norm, layer_scale=None, dtype=jnp.float32):
        kw = dict(norm=norm, layer_scale=layer_scale, dtype=dtype)
        self.attns = nnx.List([Branch(dim, "attn", attn, **kw) for attn in attns])
        self.ffns = nnx.List([Branch(dim, "mlp", mlp, **kw) for mlp in mlps])

    def __call__(self, x, train=None, *context):
        x = split_tokens(x + tap(self, "attn", sum(branch(x, train, *context) for branch in self.attns)))
        x = x + tap(self, "mlp", sum(branch(x, train) for branch in self.ffns))
        return tap(self, "output", constrain_batch(x))
