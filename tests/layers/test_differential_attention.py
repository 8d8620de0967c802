"""Differential attention and the blocks around it, against literal numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.functional import Train
from vision_jax.layers.differential_attention import Difference, DifferentialAttention, lambda_inits
from vision_jax.layers.parallel_block import ParallelBlock
from vision_jax.layers.rms_norm import RMSNorm

B, N, C, HEADS, HIDDEN = 2, 5, 12, 3, 10
norm = functools.partial(RMSNorm, epsilon=1e-3, dtype=jnp.float64)


def test_starts():
    """The paper's: 0.8 - 0.6 exp(-0.3 (l - 1)) in layer l, counted from one (section 2.1)."""
    np.testing.assert_allclose(lambda_inits(3), [0.2, 0.8 - 0.6 * np.exp(-0.3), 0.8 - 0.6 * np.exp(-0.6)], rtol=1e-12)
    for name in ("q1", "k1", "q2", "k2"):
        np.testing.assert_allclose(np.std(getattr(Difference(8192), f"lambda_{name}")[...]), 0.1, rtol=0.1)


def _rms(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * np.asarray(scale)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attended(qkv, start, difference, norms=None):
    """One example and one head at a time, [B, N, 3 C] -> [B, N, C]."""
    out, d = np.zeros((B, N, C)), C // HEADS
    for b in range(B):
        for h in range(HEADS):
            q, k, v = (qkv[b, :, i * C + h * d : i * C + (h + 1) * d] for i in range(3))
            if norms:
                q, k = (_rms(x, layer.scale[...], 1e-3) for x, layer in zip((q, k), norms, strict=True))
            if difference is None:
                out[b, :, h * d : (h + 1) * d] = _softmax(q @ k.T / np.sqrt(d)) @ v
                continue
            first, second = (
                _softmax(q[:, half] @ k[:, half].T / np.sqrt(d // 2))
                for half in (slice(None, d // 2), slice(d // 2, None))
            )
            a1, b1, a2, b2 = (
                np.asarray(getattr(difference, f"lambda_{name}")[...]) for name in ("q1", "k1", "q2", "k2")
            )
            factor = np.exp(a1 @ b1) - np.exp(a2 @ b2) + start
            head = _rms((first - factor * second) @ v, difference.sub_norm.scale[...], 1e-5)
            out[b, :, h * d : (h + 1) * d] = head * (1 - start)
    return out


def test_differential_attention():
    with jax.enable_x64(True):
        layer = tiny.refilled(DifferentialAttention(C, HEADS, dtype=jnp.float64))
        x, start = tiny.normal(B, N, C, dtype=np.float64), np.float64(0.35)
        got = jax.jit(lambda x: layer(x, None, start))(x)
        assert got.dtype == np.float64
        qkv = x @ np.asarray(layer.qkv.kernel[...]).reshape(C, 3 * C) + np.asarray(layer.qkv.bias[...]).reshape(-1)
        wanted = _attended(qkv, start, layer.difference) @ np.asarray(layer.proj.kernel[...])
        np.testing.assert_allclose(got, wanted + np.asarray(layer.proj.bias[...]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("differential", [False, True])
def test_parallel_block(differential):
    """The first product's columns are the MLP's, then the queries', keys', values'; both branches see one norm."""
    with jax.enable_x64(True):
        block = ParallelBlock(
            C, HEADS, HIDDEN, norm=norm, in_bias=differential, qk_norm=None if differential else norm,
            differential=differential, act=jnp.tanh, layer_scale=0.5, dtype=jnp.float64,
        )  # fmt: skip
        block, x = tiny.refilled(block), tiny.normal(B, N, C, dtype=np.float64)
        got = jax.jit(lambda x: block(x, None, *([np.float64(0.35)] if differential else [])))(x)
        y = _rms(x, block.in_norm.scale[...], 1e-3) @ np.asarray(block.in_proj.kernel[...])
        y = y + np.asarray(block.in_proj.bias[...]) if differential else y
        hidden = np.tanh(y[..., :HIDDEN] if differential else y[..., :HIDDEN] + np.asarray(block.mlp_bias[...]))
        norms = None if differential else (block.q_norm, block.k_norm)
        attended = _attended(y[..., HIDDEN:], 0.35, block.difference, norms)
        if differential:
            y = np.concatenate([attended, hidden], -1) @ np.asarray(block.out_proj.kernel[...])
            y = y + np.asarray(block.out_proj.bias[...])
        else:
            y = attended @ np.asarray(block.attn_out_proj.kernel[...]) + np.asarray(block.attn_out_proj.bias[...])
            y = y + hidden @ np.asarray(block.mlp_out_proj.kernel[...]) + np.asarray(block.mlp_out_proj.bias[...])
        np.testing.assert_allclose(got, x + np.asarray(block.ls.gamma[...]) * y, rtol=1e-11, atol=1e-11)


def test_what_is_dropped():
    """The whole branch at the block's rate; attention weights; hidden features, which have no say in what attends."""
    x, one = tiny.normal(64, N, C), functools.partial(RMSNorm, epsilon=1e-3)

    def dropped(rate=0.0, silenced="mlp_out_proj", **rates):
        block = ParallelBlock(C, HEADS, HIDDEN, norm=one, **rates)
        kernel = getattr(block, silenced).kernel
        kernel.set_value(0 * kernel[...])
        trained, plain = jax.jit(lambda x: (block(x, Train(jax.random.key(0), rate)), block(x)))(x)
        return int((trained == x).all((1, 2)).sum()), not bool((trained == plain).all())

    assert 16 < dropped(rate=0.5)[0] < 48
    assert dropped(attn_drop=0.5) == (0, True)
    assert dropped(attn_drop=0.5, silenced="attn_out_proj") == (0, False)
    assert dropped(hidden_drop=0.5) == (0, False)
    assert dropped(hidden_drop=0.5, silenced="attn_out_proj") == (0, True)
