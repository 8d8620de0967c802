import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.functional import Train
from vision_jax.layers.norm import BatchNorm, LayerNorm


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    with jax.enable_x64(True):
        layer = tiny.refilled(LayerNorm(6, epsilon=0.1, bias=bias, dtype=jnp.float64))
        x = tiny.normal(2, 5, 6, dtype=np.float64)
        a = np.asarray(x)
        expected = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 0.1)
        expected = expected * np.asarray(layer.scale[...]) + (np.asarray(layer.bias[...]) if bias else 0)
        got = layer(x)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_layer_norm_of_channels_far_from_zero():
    # E[x^2] - E[x]^2 in float32 is off by 2e-4 here
    x = 20 + tiny.normal(64, 32)
    a = np.asarray(x, np.float64)
    expected = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)
    assert abs(LayerNorm(32, epsilon=1e-6)(x) - expected).max() < 2e-5


def test_batch_norm_in_evaluation():
    with jax.enable_x64(True):
        layer = tiny.refilled(BatchNorm(3, epsilon=0.1, dtype=jnp.float64))
        x = tiny.normal(4, 2, 5, 3, dtype=np.float64)
        scale, bias, mean, var = (np.asarray(v[...]) for v in (layer.scale, layer.bias, layer.mean, layer.var))
        expected = (np.asarray(x) - mean) / np.sqrt(var + 0.1) * scale + bias
        np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(layer.mean[...], mean)
        np.testing.assert_array_equal(layer.var[...], var)


def test_batch_norm_in_training_over_two_steps():
    with jax.enable_x64(True):
        layer = tiny.refilled(BatchNorm(3, epsilon=0.1, momentum=0.2, dtype=jnp.float64))
        scale, bias, mean, var = (np.asarray(v[...]) for v in (layer.scale, layer.bias, layer.mean, layer.var))
        for seed in range(2):
            x = 1 + 2 * tiny.normal(2, 2, 3, 3, seed=seed, dtype=np.float64)
            rows = np.asarray(x).reshape(-1, 3)
            expected = (np.asarray(x) - rows.mean(0)) / np.sqrt(rows.var(0) + 0.1) * scale + bias
            np.testing.assert_allclose(layer(x, Train(jax.random.key(0))), expected, rtol=1e-12, atol=1e-12)
            mean = 0.8 * mean + 0.2 * rows.mean(0)
            var = 0.8 * var + 0.2 * rows.var(0, ddof=1)  # unbiased, as torch keeps it
        np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-13)
        np.testing.assert_allclose(layer.var[...], var, rtol=1e-13)


def test_batch_norm_of_channels_far_from_zero():
    x = 100 + tiny.normal(64, 8)
    a = np.asarray(x, np.float64)
    expected = (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)
    assert abs(BatchNorm(8)(x, Train(jax.random.key(0))) - expected).max() < 1e-4


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_compute_keeps_float32_statistics(train):
    layer = BatchNorm(3, dtype=jnp.bfloat16)
    assert layer(jnp.ones((4, 3), jnp.bfloat16), Train(jax.random.key(0)) if train else None).dtype == jnp.bfloat16
    assert {v.dtype for v in (layer.scale, layer.bias, layer.mean, layer.var)} == {np.dtype(np.float32)}
    x = jnp.bfloat16(256) + tiny.normal(4, 32, dtype=jnp.bfloat16)
    wide = LayerNorm(32, epsilon=1e-6)(x.astype(jnp.float32))
    np.testing.assert_array_equal(LayerNorm(32, epsilon=1e-6, dtype=jnp.bfloat16)(x), wide.astype(jnp.bfloat16))


@pytest.mark.filterwarnings("error")  # JAX casts what is stored, but says that it will not for long
def test_float64_compute_keeps_the_statistics_dtype():
    with jax.enable_x64(True):
        layer = BatchNorm(3, dtype=jnp.float64)
        layer(tiny.normal(4, 3, dtype=np.float64), Train(jax.random.key(0)))
        assert layer.mean.dtype == layer.var.dtype == np.float32


def test_scale_init():
    from vision_jax.parameters import zeros

    np.testing.assert_array_equal(BatchNorm(3, scale_init=zeros)(tiny.normal(4, 3)), 0.0)
