"""Norms of maps against their equations, pixel by pixel or group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.functional import Train
from vision_jax.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchNorm
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.norm_act import EvoNorm, FilterResponseNorm
from vision_jax.layers.response_norm import GlobalResponseNorm
from vision_jax.layers.rms_norm import RMSNorm, SimpleNorm

X = np.random.default_rng(0).normal(0.7, 2.0, (2, 3, 4, 6))


def filled(layer):
    """The layer with random scale and bias, in float64."""
    rng = np.random.default_rng(1)
    for name in ("scale", "bias", "v", "tau"):
        if (leaf := getattr(layer, name, None)) is not None:
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


def test_evo_norm():
    """EvoNorm-S0 of arXiv:2004.02967, table 2."""
    with jax.enable_x64(True):
        layer, scale = filled(EvoNorm(6, 2, epsilon=0.1, dtype=jnp.float64))
        given, v, bias = layer(X), np.asarray(layer.v[...]), np.asarray(layer.bias[...])
    assert given.dtype == np.float64
    for b, c in np.ndindex(2, 6):
        x, group = X[b, ..., c], X[b][..., c // 3 * 3 : c // 3 * 3 + 3]
        wanted = x / (1 + np.exp(-v[c] * x)) / np.sqrt(group.var() + 0.1) * scale[c] + bias[c]
        np.testing.assert_allclose(given[b, ..., c], wanted, rtol=1e-12, atol=1e-13)


def test_filter_response_norm():
    """Equations 1 to 3 of arXiv:1911.09737."""
    with jax.enable_x64(True):
        layer, scale = filled(FilterResponseNorm(6, epsilon=0.1, dtype=jnp.float64))
        given, tau, bias = layer(X), np.asarray(layer.tau[...]), np.asarray(layer.bias[...])
    assert given.dtype == np.float64
    for b, c in np.ndindex(2, 6):
        x = X[b, ..., c]
        wanted = np.maximum(scale[c] * x / np.sqrt(np.mean(x**2) + 0.1) + bias[c], tau[c])
        np.testing.assert_allclose(given[b, ..., c], wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_channel_norm(estimated, training):
    """Section 4 and algorithm 1 of arXiv:1911.09738: two norms, each with scale and bias of its own."""
    with jax.enable_x64(True):
        layer, scale = filled(BatchChannelNorm(6, 2, estimated=estimated, momentum=0.3, dtype=jnp.float64))
        bn = filled(layer.pbn)[0]
        mean, var = np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6)
        bn.mean.set_value(jnp.asarray(mean))
        bn.var.set_value(jnp.asarray(var))
        given = layer(X, Train(jax.random.key(0)) if training else None)
        bias, channel_scale, channel_bias = (np.asarray(a[...]) for a in (layer.bias, bn.scale, bn.bias))
    own, wanted = np.empty_like(X), np.empty_like(X)
    for c in range(6):
        x = X[..., c]
        spread = np.mean((x - mean[c]) ** 2) if estimated else x.var(ddof=1)
        if training:
            mean[c], var[c] = 0.7 * mean[c] + 0.3 * x.mean(), 0.7 * var[c] + 0.3 * spread
        used = (x.mean(), x.var()) if training and not estimated else (mean[c], var[c])
        own[..., c] = (x - used[0]) / np.sqrt(used[1] + 1e-5) * channel_scale[c] + channel_bias[c]
    for b, group in np.ndindex(2, 2):
        x = own[b][..., 3 * group : 3 * group + 3]
        wanted[b, ..., 3 * group : 3 * group + 3] = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale[group] + bias[
            group
        ]
    assert given.dtype == np.float64
    np.testing.assert_allclose(given, wanted, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(bn.mean[...], mean, rtol=1e-12)
    np.testing.assert_allclose(bn.var[...], var, rtol=1e-12)


def test_no_gradient_passes_through_estimated_statistics():
    weights = np.random.default_rng(2).normal(size=X.shape)

    def loss(x):
        layer = EstimatedBatchNorm(6)
        return (layer(x, Train(jax.random.key(0))) * weights).sum(), layer.var[...]

    gradient, var = jax.grad(loss, has_aux=True)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(gradient, weights / np.sqrt(var + 1e-5), rtol=1e-5)


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


@pytest.mark.parametrize(
    "kind", [RMSNorm, SimpleNorm, GroupNorm, GlobalResponseNorm, EvoNorm, FilterResponseNorm, BatchChannelNorm]
)
def test_half_precision_in_and_out(kind):
    options = {"epsilon": 1e-6} if kind in (RMSNorm, SimpleNorm) else {}
    options |= {"groups": 2} if kind in (EvoNorm, BatchChannelNorm) else {}
    x = jnp.asarray(X, jnp.bfloat16)
    given, wanted = kind(6, **options, dtype=jnp.bfloat16)(x), kind(6, **options)(x.astype(jnp.float32))
    assert given.dtype == jnp.bfloat16
    np.testing.assert_array_equal(given, wanted.astype(jnp.bfloat16))  # rounded once, at the end
