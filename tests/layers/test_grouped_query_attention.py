"""Grouped-query attention against literal numpy."""

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from vision_jax.layers.grouped_query_attention import GroupedQueryAttention
from vision_jax.layers.rotary import Rotary, rotate

B, N, C, HEADS, KV_HEADS = 2, 5, 24, 6, 2
D = C // HEADS


def test_grouped_query_attention():
    """Queries of heads 0, 1, 2 meet the keys of head 0, those of 3, 4, 5 head 1's; the first token is not turned."""
    with jax.enable_x64(True):
        rotary = Rotary((2, 2), 1, 100.0, centred=True, halves=True)
        layer = tiny.refilled(GroupedQueryAttention(C, HEADS, KV_HEADS, rotary=rotary, dtype=jnp.float64))
        x = tiny.normal(B, N, C, dtype=np.float64)
        leaves = (layer.q.kernel, layer.q.bias, layer.kv.kernel, layer.kv.bias, layer.proj.kernel, layer.proj.bias)
        q_kernel, q_bias, kv_kernel, kv_bias, kernel, bias = (np.asarray(leaf[...]) for leaf in leaves)
        q = (x @ q_kernel + q_bias).reshape(B, N, HEADS, D)
        k, v = (np.einsum("bnc,chd->bnhd", x, kv_kernel[:, i]) + kv_bias[i] for i in range(2))
        q, k = (np.concatenate([y[:, :1], rotate(y[:, 1:], rotary.angles(D), halves=True)], axis=1) for y in (q, k))
        wanted = np.zeros((B, N, C))
        for b in range(B):
            for h in range(HEADS):
                shared = h // 3
                weights = np.exp(q[b, :, h] @ np.asarray(k[b, :, shared]).T / np.sqrt(D))
                weights /= weights.sum(-1, keepdims=True)
                wanted[b, :, h * D : (h + 1) * D] = weights @ np.asarray(v[b, :, shared])
        np.testing.assert_allclose(jax.jit(layer)(x), wanted @ kernel + bias, rtol=1e-11, atol=1e-11)
