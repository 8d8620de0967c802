import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.functional import Train, apply, split
from vision_jax.layers.attention import Attention, WideQKV, aggregate, attention_probabilities
from vision_jax.layers.block import Block
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.talking_heads import TalkingHeads

B, N, C, HEADS = 2, 5, 6, 3
norm = functools.partial(LayerNorm, epsilon=1e-3, dtype=jnp.float64)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _layer_norm(x, module):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return x * np.asarray(module.scale[...]) + np.asarray(module.bias[...])


def _literal(layer, x):
    """Attention as the paper writes it, one example and one head at a time, from one (C, 3C) projection."""
    x, d = np.asarray(x), C // HEADS
    qkv = x @ np.asarray(layer.qkv.kernel[...]).reshape(C, 3 * C)
    if layer.qkv.bias is not None:
        qkv = qkv + np.asarray(layer.qkv.bias[...]).reshape(3 * C)
    out = np.zeros_like(x)
    for b in range(len(x)):
        for h in range(HEADS):
            q, k, v = (qkv[b, :, i * C + h * d : i * C + (h + 1) * d] for i in range(3))
            if layer.q_norm is not None:
                q, k = _layer_norm(q, layer.q_norm), _layer_norm(k, layer.k_norm)
            out[b, :, h * d : (h + 1) * d] = _softmax(q @ k.T / np.sqrt(d)) @ v
    return out @ np.asarray(layer.proj.kernel[...]) + np.asarray(layer.proj.bias[...])


@pytest.mark.parametrize(("qkv_bias", "qk_norm"), [(True, None), (False, None), (True, norm)])
def test_attention(qkv_bias, qk_norm):
    with jax.enable_x64(True):
        layer = tiny.refilled(Attention(C, HEADS, qkv_bias=qkv_bias, qk_norm=qk_norm, dtype=jnp.float64))
        x = tiny.normal(B, N, C, dtype=np.float64)
        got = layer(x)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, _literal(layer, x), rtol=1e-11, atol=1e-12)


def test_softmax_is_at_least_float32():
    q = tiny.normal(1, 4, 1, 2, dtype=jnp.bfloat16)
    assert attention_probabilities(q, q).dtype == jnp.float32
    wide = q.astype(jnp.float32)
    np.testing.assert_allclose(attention_probabilities(q, q), attention_probabilities(wide, wide), rtol=1e-6)
    assert aggregate(attention_probabilities(q, q), q).dtype == jnp.bfloat16
    np.testing.assert_allclose(attention_probabilities(q, q, scale=0.0), 0.25)


def test_dropouts_of_attention():
    x = tiny.normal(B, N, C)

    def out(**rates):
        layer = tiny.refilled(Attention(C, HEADS, **rates), np.float32)
        return layer(x, Train(jax.random.key(0)))

    plain, weights, result = out(), out(attn_drop=0.5), out(proj_drop=0.5)
    zeros = np.asarray(result) == 0
    assert 0.2 < zeros.mean() < 0.8
    np.testing.assert_allclose(np.asarray(result)[~zeros], 2 * np.asarray(plain)[~zeros], rtol=1e-6)
    assert (np.asarray(weights) != np.asarray(plain)).all()
    # a rate of zero takes its key: the second mask does not depend on the first rate
    np.testing.assert_array_equal(np.asarray(out(attn_drop=0.5, proj_drop=0.5)) == 0, zeros)


def test_attention_probabilities_are_tapped():
    static, variables = split(Attention(C, HEADS))
    _, state = apply(static, variables, tiny.normal(B, N, C), capture="probabilities")
    probabilities = state["captured"]["probabilities"]
    assert probabilities.shape == (B, HEADS, N, N)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_block(layer_scale):
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64}
        block = Block(C, attn=Attention(C, HEADS, **kw), mlp=Mlp(C, 8, **kw), norm=norm, layer_scale=layer_scale, **kw)
        block = tiny.refilled(block)
        x = np.asarray(tiny.normal(B, N, C, dtype=np.float64))
        scales = [np.asarray(ls.gamma[...]) if ls else 1.0 for ls in (block.ls1, block.ls2)]
        h = x + scales[0] * np.asarray(block.attn(jnp.array(_layer_norm(x, block.norm1))))
        expected = h + scales[1] * np.asarray(block.mlp(jnp.array(_layer_norm(h, block.norm2))))
        np.testing.assert_allclose(block(jnp.array(x)), expected, rtol=1e-11, atol=1e-12)


def test_drop_path_drops_the_branches_apart():
    norm32 = functools.partial(LayerNorm, epsilon=1e-3)
    block = Block(C, attn=Attention(C, HEADS), mlp=Mlp(C, 8), norm=norm32, dtype=jnp.float32)
    block, x = tiny.refilled(block, np.float32), tiny.normal(64, N, C)
    out = block(x, Train(jax.random.key(0), 0.5))
    after_attention = x + 2 * block.attn(block.norm1(x))
    untouched = (np.asarray(out) == np.asarray(x)).all((1, 2))
    attention_alone = np.isclose(out, after_attention, rtol=1e-4, atol=1e-4).all((1, 2))
    assert 0.1 < untouched.mean() < 0.45  # a quarter has neither branch
    assert 0.1 < attention_alone.mean() < 0.45


def test_a_bias_is_added_to_the_scores():
    q, k, bias = tiny.normal(B, N, HEADS, 2), tiny.normal(B, N - 1, HEADS, 2), tiny.normal(HEADS, N, N - 1)
    wanted = _softmax(np.einsum("bqhd,bkhd->bhqk", q, k) * 2**-0.5 + bias)
    np.testing.assert_allclose(attention_probabilities(q, k, bias=bias), wanted, rtol=1e-5)


def test_values_wider_than_keys():
    layer, x = WideQKV(C, HEADS, 2, 5), tiny.normal(B, N, C)
    layer.bias.set_value(jnp.asarray(tiny.normal(HEADS, 9)))
    each = np.stack([x @ layer.kernel[:, h] + layer.bias[h] for h in range(HEADS)], axis=2)
    for found, wanted in zip(layer(x), np.split(each, [2, 4], axis=-1), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_talking_heads():
    layer, x = TalkingHeads(HEADS, 2), tiny.normal(B, HEADS, N, N)
    layer.bias.set_value(jnp.asarray(tiny.normal(2)))
    wanted = sum(x[:, i, None] * np.asarray(layer.kernel[i])[:, None, None] for i in range(HEADS))
    np.testing.assert_allclose(layer(x), wanted + np.asarray(layer.bias[...])[:, None, None], rtol=1e-5, atol=1e-5)
