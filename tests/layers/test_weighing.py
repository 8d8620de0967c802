"""The dtype in which gradients are made: the same results, other gradients' precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from vision_jax.layers.attention import QKV, WideQKV
from vision_jax.layers.conv import Conv
from vision_jax.layers.glu import GLU
from vision_jax.layers.linear import Linear
from vision_jax.layers.standardized_conv import StandardizedConv
from vision_jax.mesh import gradients_in

LAYERS = {
    "linear": lambda dtype: Linear(8, 6, dtype=dtype),
    "qkv": lambda dtype: QKV(8, 2, 4, dtype=dtype),
    "wide qkv": lambda dtype: WideQKV(8, 2, 4, 8, dtype=dtype),
    "glu": lambda dtype: GLU(8, 6, dtype=dtype),
    "conv": lambda dtype: Conv(8, 6, 3, stride=2, dtype=dtype),
    "standardised conv": lambda dtype: StandardizedConv(8, 6, 3, standard_epsilon=1e-6, dtype=dtype),
}


def gradients(make, dtype, wanted):
    """(result, gradients of the parameters and of the input) of a layer."""
    layer = make(dtype)
    static, params = nnx.split(layer)
    params = jax.tree.map(lambda leaf: tiny.normal(*leaf.shape, seed=leaf.size), params)
    x = tiny.normal(64, 9, 9, 8).astype(dtype)

    def loss(params, x):
        out = jax.tree.leaves(nnx.merge(static, params)(x))
        weights = [tiny.normal(*y.shape, seed=i) for i, y in enumerate(out)]
        return sum((y.astype(jnp.float32) * w).sum() for y, w in zip(out, weights, strict=True)), out

    with gradients_in(wanted):
        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return out, tiny.by_name(grads[0]), np.asarray(grads[1], np.float32)


def both(name, dtype, wanted):
    """A layer's gradients in its own dtype and in another one; results and the input's gradients are the same."""
    out, plain, dx = gradients(LAYERS[name], dtype, None)
    same, other, dx_too = gradients(LAYERS[name], dtype, wanted)
    assert all(np.array_equal(a, b) for a, b in zip(out, same, strict=True))
    assert np.array_equal(dx, dx_too)
    return plain, other


@pytest.mark.heavy
@pytest.mark.parametrize("name", LAYERS)
def test_float32_gradients_of_bfloat16_layers(name):
    plain, wide = both(name, jnp.bfloat16, jnp.float32)
    _, exact, _ = gradients(LAYERS[name], jnp.float32, None)
    for leaf, value in exact.items():
        assert wide[leaf].dtype == np.float32
        scale = np.sqrt(np.mean(value**2))
        worse, better = (np.sqrt(np.mean((g[leaf] - value) ** 2)) / scale for g in (plain, wide))
        # what is left is the rounding of what meets: of the input and of the gradient of the result
        assert better <= worse
        if name != "standardised conv":
            rounded = plain[leaf].astype(jnp.bfloat16).astype(np.float32)
            assert np.array_equal(plain[leaf], rounded)
            assert not np.array_equal(wide[leaf], wide[leaf].astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_gradients_of_float32_layers(name):
    exact, narrow = both(name, jnp.float32, jnp.bfloat16)
    _, plain, _ = gradients(LAYERS[name], jnp.bfloat16, None)
    for leaf, value in exact.items():
        assert narrow[leaf].dtype == np.float32
        assert not np.array_equal(narrow[leaf], value)
        if "bias" in leaf:
            assert np.array_equal(narrow[leaf], narrow[leaf].astype(jnp.bfloat16).astype(np.float32))
            np.testing.assert_allclose(narrow[leaf], value, rtol=0, atol=1e-2 * np.abs(value).max())
        else:  # as precise as a processor's sum of bfloat16 products: the same as of a bfloat16 layer
            assert np.array_equal(narrow[leaf], plain[leaf])
