import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.scale import LayerScale

erf = np.vectorize(math.erf)


def _arrays(*variables):
    return [np.asarray(variable[...]) for variable in variables]


@pytest.mark.parametrize("cls", [Linear, PointwiseConv])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(cls, bias):
    with jax.enable_x64(True):
        layer = tiny.refilled(cls(3, 5, bias=bias, dtype=jnp.float64))
        x = tiny.normal(2, 4, 3, dtype=np.float64)
        kernel = np.asarray(layer.kernel[...])
        expected = np.zeros((2, 4, 5))
        for i in range(3):
            for o in range(5):
                expected[..., o] += np.asarray(x)[..., i] * kernel[i, o]
        got = layer(x)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected + (np.asarray(layer.bias[...]) if bias else 0), rtol=1e-12)


def test_mlp_has_the_exact_gelu():
    with jax.enable_x64(True):
        layer = tiny.refilled(Mlp(3, 7, dtype=jnp.float64))
        x = tiny.normal(2, 4, 3, dtype=np.float64)
        w1, b1, w2, b2 = _arrays(layer.fc1.kernel, layer.fc1.bias, layer.fc2.kernel, layer.fc2.bias)
        h = np.asarray(x) @ w1 + b1
        h = h * 0.5 * (1 + erf(h / math.sqrt(2)))
        np.testing.assert_allclose(layer(x), h @ w2 + b2, rtol=1e-11)


def test_mlp_drops_twice():
    from vision_jax.functional import Train

    layer = tiny.refilled(Mlp(3, 64, drop=0.5), np.float32)
    x = tiny.normal(256, 3)
    out = np.asarray(layer(x, Train(jax.random.key(0))))
    assert 0.4 < (out == 0).mean() < 0.6  # the second one, on the result
    kept = out != 0
    assert abs(out - 2 * np.asarray(layer(x)))[kept].min() > 0  # the first one, on the hidden features


def test_layer_scale():
    with jax.enable_x64(True):
        layer = LayerScale(3, 1e-5, dtype=jnp.float64)
        assert (np.asarray(layer.gamma[...]) == np.float32(1e-5)).all()
        layer = tiny.refilled(layer)
        x = tiny.normal(2, 4, 3, dtype=np.float64)
        np.testing.assert_allclose(layer(x), np.asarray(x) * np.asarray(layer.gamma[...]), rtol=1e-15)


@pytest.mark.parametrize("make", [lambda d: Linear(3, 3, dtype=d), lambda d: Mlp(3, 4, dtype=d)])
def test_bfloat16_compute_keeps_float32_parameters(make):
    layer = make(jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(tiny.nnx.state(layer))} == {np.dtype(np.float32)}
    assert layer(jnp.ones((2, 3))).dtype == jnp.bfloat16
