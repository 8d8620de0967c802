"""Differential attention: what two softmaxes agree on is taken away as noise."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import Attention, aggregate, attention_probabilities
from vision_jax.layers.drop import dropout
from vision_jax.layers.rms_norm import RMSNorm
from vision_jax.parameters import Normal, param


def lambda_inits(depth):
    """What each block's lambda is near at the start, float64 [depth]: 0.2 in the first, 0.8 in a deep one."""
    return 0.8 - 0.6 * np.exp(-0.3 * np.arange(depth))


class Difference(nnx.Module):
    """(1 - l0) norm((softmax(q1 k1^T / sqrt(d)) - l softmax(q2 k2^T / sqrt(d))) v), heads apart.

    Differential Transformer (Ye et al., 2025, arXiv:2410.05258, equations 1 to 3); q1 and q2 are the halves of a head's
    query, of d channels each, k1 and k2 of its key. l = exp(a1 b1) - exp(a2 b2) + l0, all heads together, is learned.

    Args:
      head_dim: channels of a head, 2 d.
      attn_drop: dropout rate of both softmaxes' weights.
      dtype: dtype of the computation; the softmaxes are at least float32.
    """

    def __init__(self, head_dim, *, attn_drop=0.0, dtype=jnp.float32):
        self.attn_drop = attn_drop
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            param((head_dim // 2,), Normal(0.1)) for _ in range(4)
        )
        self.sub_norm = RMSNorm(head_dim, epsilon=1e-5, dtype=dtype)

    def __call__(self, q, k, v, lambda_init, train=None):
        """Queries, keys, values [B, N, heads, head_dim] and the block's l0, a scalar -> [B, N, heads, head_dim]."""
        B, N, H, D = v.shape
        halves = [x.reshape(B, N, 2 * H, D // 2) for x in (q, k)]
        weights = dropout(tap(self, "probabilities", attention_probabilities(*halves)), self.attn_drop, train)
        start = jnp.asarray(lambda_init, weights.dtype)
        first, second = (
            jnp.exp(jnp.vdot(a[...], b[...]).astype(weights.dtype))
            for a, b in ((self.lambda_q1, self.lambda_k1), (self.lambda_q2, self.lambda_k2))
        )
        weights = weights.reshape(B, H, 2, N, N)
        out = aggregate(weights[:, :, 0] - (first - second + start) * weights[:, :, 1], v)
        return self.sub_norm(out) * (1 - start).astype(out.dtype)


class DifferentialAttention(Attention):
    """Self-attention by a `Difference` in each head, [B, N, C] -> [B, N, C]; the context is the block's l0.

    Args:
      dim, num_heads, qkv_bias, attn_drop, proj_drop, dtype: as of `Attention`.
    """

    def __init__(self, dim, num_heads, *, qkv_bias=True, attn_drop=0.0, proj_drop=0.0, dtype=jnp.float32):
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, proj_drop=proj_drop, dtype=dtype)
        self.difference = Difference(dim // num_heads, attn_drop=attn_drop, dtype=dtype)

    def weigh_values(self, q, k, v, train=None, *context):
        """Queries, keys and values, [B, N, heads, head_dim] each -> the same for the heads' results."""
        return self.difference(q, k, v, *context, train)
