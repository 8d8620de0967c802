"""Neighborhood attention as a layer: padding of small maps, the bias at another kernel size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import neighborhood_attention

from vision_jax.layers.neighborhood import NeighborhoodAttention


def layer(**fields):
    """One with parameters of order 1, and its input."""
    made = NeighborhoodAttention(**{**dict(dim=6, num_heads=2, kernel_size=(3, 5)), **fields})
    rng = np.random.default_rng(0)
    for variable in (made.qkv.kernel, made.qkv.bias, made.rpb, made.proj.kernel, made.proj.bias):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
    return made, jnp.asarray(rng.normal(size=(2, 5, 7, 6)), jnp.float32)


@pytest.mark.parametrize("dilation", [1, (1, 2), 3])
def test_a_small_map_is_padded_before_the_projection(dilation):
    """Zeros below and to the right of 5 x 7, so that keys and values of the projection's bias lie there."""
    made, x = layer(dilation=dilation)
    d = np.broadcast_to(dilation, 2)
    full = jnp.zeros((2, max(5, 3 * d[0]), max(7, 5 * d[1]), 6)).at[:, :5, :7].set(x)
    q, k, v = (jnp.einsum("bhwc,cnd->bhwnd", full, made.qkv.kernel[:, i]) + made.qkv.bias[i] for i in range(3))
    out = neighborhood_attention(q, k, v, kernel_size=(3, 5), dilation=tuple(map(int, d)), bias=made.rpb[...])
    out = out[:, :5, :7].reshape(x.shape) @ made.proj.kernel[...] + made.proj.bias[...]
    np.testing.assert_allclose(jax.jit(made.__call__)(x), out, rtol=1e-5, atol=1e-5)


def test_a_bias_for_another_kernel_size_keeps_what_is_constant_and_symmetric():
    made, _ = layer(kernel_size=11)
    table = np.full((2, 13, 13), 2.0, np.float32)
    assert made.resample("rpb", table).shape == (2, 21, 21)
    np.testing.assert_allclose(made.resample("rpb", table), 2, rtol=1e-6)
    table = table * abs(np.arange(-6, 7, dtype=np.float32))
    resized = made.resample("rpb", table)
    np.testing.assert_allclose(resized, resized[:, :, ::-1], atol=1e-5)
    assert resized[0, 0, 10] < 0.2 < 10 < resized[0, 0, 0]


@pytest.mark.parity
def test_a_bias_for_another_kernel_size_is_torchs(reference):
    torch, (made, _) = reference("torch"), layer(kernel_size=11)
    table = np.random.default_rng(0).normal(size=(2, 13, 13)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(table)[None], size=(21, 21), mode="bicubic")
    np.testing.assert_allclose(made.resample("rpb", table), theirs[0].numpy(), atol=1e-5)
