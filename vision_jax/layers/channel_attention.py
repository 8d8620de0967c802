"""Attention between channels: every channel is a token, whose features are all positions of the map."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import QKV
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import unit
from vision_jax.parameters import ones, param, trunc_normal


class ChannelAttention(nnx.Module):
    """Self-attention between the channels of each group, [B, H, W, C] -> [B, H, W, C].

    DaViT (Ding et al., 2022, arXiv:2204.03645, section 3.3): scores are C / groups on a side whatever the size of the
    map, so that the cost is linear in its positions, and each of them sees all the others.

    Args:
      dim: channels.
      groups: number of groups of channels that do not see each other; divides dim.
      order: which part of the projection holds the queries, the keys and the values.
      scale_by_tokens: scale the scores by (H W) ** -0.5, not by (C / groups) ** -0.5.
      cosine: scores are cosines between channels times a learned factor a group (XCiT's cross-covariance attention:
        El-Nouby et al., 2021, arXiv:2106.09681, section 3.2).
      init: initialiser of the projections.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(
        self, dim, groups, *, order=(0, 1, 2), scale_by_tokens=False, cosine=False, init=trunc_normal,
        dtype=jnp.float32,
    ):  # fmt: skip
        self.order, self.scale_by_tokens = order, scale_by_tokens
        self.temperature = param((groups, 1, 1), ones) if cosine else None
        self.qkv = QKV(dim, groups, dim // groups, init=init, dtype=dtype)
        self.proj = Linear(dim, dim, init=init, dtype=dtype)

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        parts = self.qkv(x.reshape(B, H * W, C))
        q, k, v = (parts[i] for i in self.order)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        if self.temperature is None:
            scale = (H * W if self.scale_by_tokens else q.shape[-1]) ** -0.5
        else:
            q, k, scale = unit(q, axis=1), unit(k, axis=1), self.temperature[...].astype(wide)
        scores = jnp.einsum("bngc,bngd->bgcd", q, k, preferred_element_type=wide)
        probabilities = tap(self, "probabilities", jax.nn.softmax(scores * scale, axis=-1))
        out = jnp.einsum("bgcd,bngd->bngc", probabilities.astype(v.dtype), v)
        return self.proj(out.reshape(x.shape))
