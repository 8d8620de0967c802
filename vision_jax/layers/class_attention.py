"""Class attention: a class token alone asks, of itself and of all patches."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import QKV, aggregate, attention_probabilities
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.scale import LayerScale


class ClassAttention(nnx.Module):
    """Attention of the first token over all, [B, 1+N, C] -> [B, 1, C].

    CaiT (Touvron et al., 2021, arXiv:2103.17239, section 3); CrossViT (arXiv:2103.14899, section 3.3).

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      qkv_bias: whether the projections to queries, keys and values have a bias.
      attn_drop, proj_drop: dropout of the attention weights and of the result.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, dim, num_heads, *, qkv_bias=True, attn_drop=0.0, proj_drop=0.0, dtype=jnp.float32):
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.qkv = QKV(dim, num_heads, dim // num_heads, bias=qkv_bias, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        token = x[:, :1]
        q, k, v = self.qkv.project(token, 0), self.qkv.project(x, 1), self.qkv.project(x, 2)
        probabilities = tap(self, "probabilities", attention_probabilities(q, k))
        out = aggregate(dropout(probabilities, self.attn_drop, train), v)
        return dropout(self.proj(out.reshape(token.shape)), self.proj_drop, train)


class ClassBlock(nnx.Module):
    """Residual branches of the class token alone: class attention, then an MLP; the patches stay as they are.

    Called as block(token [B, 1, C], train, patches [B, N, C]) -> token.

    Args:
      dim: channels.
      attn: a `ClassAttention`.
      norm: `(dim) -> module`; the first one normalises the patches too.
      mlp: the channel mixer, called as mlp(x, train); None for no second branch (CrossViT).
      layer_scale: initial value of the branches' scales, or None for no scales.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, *, attn, norm, mlp=None, layer_scale=None, dtype):
        self.norm1, self.attn = norm(dim), attn
        self.norm2, self.mlp = (norm(dim), mlp) if mlp else (None, None)
        scaled = layer_scale is not None
        self.ls1 = LayerScale(dim, layer_scale, dtype=dtype) if scaled else None
        self.ls2 = LayerScale(dim, layer_scale, dtype=dtype) if scaled and mlp else None

    def __call__(self, token, train, patches):
        y = tap(self, "attn", self.attn(self.norm1(jnp.concatenate([token, patches], axis=1)), train))
        token = token + drop_path(self.ls1(y) if self.ls1 else y, train)
        if self.mlp:
            y = tap(self, "mlp", self.mlp(self.norm2(token), train))
            token = token + drop_path(self.ls2(y) if self.ls2 else y, train)
        return tap(self, "output", token)
