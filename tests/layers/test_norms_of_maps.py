"""RMSNorm, SimpleNorm, GroupNorm and GlobalResponseNorm against their equations, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.response_norm import GlobalResponseNorm
from vision_jax.layers.rms_norm import RMSNorm, SimpleNorm

X = np.random.default_rng(0).normal(0.7, 2.0, (2, 3, 4, 6))


def filled(layer):
    """The layer with random scale and bias, in float64."""
    rng = np.random.default_rng(1)
    for leaf in (layer.scale, getattr(layer, "bias", None)):
        if leaf is not None:
            leaf.set_value(jnp.array(rng.normal(size=leaf.shape)))
    return layer, np.asarray(layer.scale[...])


@pytest.mark.parametrize("kind", [RMSNorm, SimpleNorm])
def test_norms_that_rescale(kind):
    with jax.enable_x64(True):
        layer, scale = filled(kind(6, epsilon=0.1, dtype=jnp.float64))
        wanted = np.empty_like(X)
        for where in np.ndindex(X.shape[:3]):
            x = X[where]
            spread = np.mean(x**2) if kind is RMSNorm else np.sum((x - x.mean()) ** 2) / (len(x) - 1)
            wanted[where] = x / np.sqrt(spread + 0.1) * scale
        given = layer(X)
    assert given.dtype == np.float64
    np.testing.assert_allclose(given, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(groups, bias):
    with jax.enable_x64(True):
        layer, scale = filled(GroupNorm(6, groups, epsilon=0.1, bias=bias, dtype=jnp.float64))
        wanted = np.empty_like(X)
        for b in range(2):
            for g in np.split(np.arange(6), groups):
                x = X[b][..., g]
                wanted[b][..., g] = (x - x.mean()) / np.sqrt(x.var() + 0.1) * scale[g]
        given = layer(X)
        wanted += np.asarray(layer.bias[...]) if bias else 0
    assert given.dtype == np.float64
    np.testing.assert_allclose(given, wanted, rtol=1e-12, atol=1e-13)


def test_global_response_norm():
    with jax.enable_x64(True):
        layer, scale = filled(GlobalResponseNorm(6, epsilon=0.1, dtype=jnp.float64))
        wanted = np.empty_like(X)
        for b in range(2):
            norms = [np.sqrt(np.sum(X[b, :, :, c] ** 2)) for c in range(6)]
            for c in range(6):
                x = X[b, :, :, c]
                wanted[b, :, :, c] = x + scale[c] * x * norms[c] / (np.mean(norms) + 0.1) + np.asarray(layer.bias[c])
        given = layer(X)
    assert given.dtype == np.float64
    np.testing.assert_allclose(given, wanted, rtol=1e-12, atol=1e-13)


def test_global_response_norm_of_nothing_has_a_gradient():
    layer, _ = filled(GlobalResponseNorm(6))
    assert np.isfinite(jax.grad(lambda x: layer(x).sum())(jnp.zeros((1, 2, 2, 6)))).all()


@pytest.mark.parametrize("kind", [RMSNorm, SimpleNorm, GroupNorm, GlobalResponseNorm])
def test_half_precision_in_and_out(kind):
    epsilon = {} if kind in (GroupNorm, GlobalResponseNorm) else {"epsilon": 1e-6}
    x = jnp.asarray(X, jnp.bfloat16)
    given, wanted = kind(6, **epsilon, dtype=jnp.bfloat16)(x), kind(6, **epsilon)(x.astype(jnp.float32))
    assert given.dtype == jnp.bfloat16
    np.testing.assert_array_equal(given, wanted.astype(jnp.bfloat16))  # rounded once, at the end
