"""Operators with a form of their own for CPUs: equal to XLA's, which every other platform keeps."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.grouped_conv import conv, grouped_conv
from vision_jax.layers.window_reduce import window_max, window_sum

CONVOLUTIONS = {  # H, W, Cin, Cout, kernel, stride, padding, dilation, groups
    "depthwise": (9, 11, 6, 6, (7, 7), (1, 1), ((3, 3), (3, 3)), (1, 1), 6),
    "uneven in everything": (9, 11, 6, 6, (3, 5), (2, 1), ((1, 1), (2, 1)), (1, 2), 6),
    "many tiles across": (5, 70, 2, 2, (3, 3), (1, 1), ((4, 4), (4, 4)), (1, 1), 2),
    "many tiles down, strided": (70, 5, 2, 2, (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), 2),
    "kernel of many taps": (8, 8, 4, 4, (9, 9), (1, 1), ((4, 4), (4, 4)), (1, 1), 4),
    "two outputs a channel": (8, 8, 6, 12, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    "narrow groups": (8, 8, 64, 128, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 8),
    "wide groups": (6, 6, 80, 80, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
}
WINDOWS = {  # H, W, window, stride, padding
    "same": (9, 11, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "strided": (9, 10, (3, 3), (2, 2), ((1, 1), (1, 2))),
    "uneven": (9, 9, (2, 3), (3, 2), ((0, 0), (1, 0))),
}


def xla_sum(x, window, stride, padding, shape):
    return jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, *window, 1), (1, *stride, 1), ((0, 0), *padding, (0, 0))
    )  # fmt: skip


def xla_max(x, window, stride, padding):
    return jax.lax.reduce_window(
        x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), ((0, 0), *padding, (0, 0))
    )  # fmt: skip


def assert_alike(mine, theirs, *arrays):
    """Values and gradients, to rounding in float64."""
    y, pull = jax.vjp(mine, *arrays)
    expected, expected_pull = jax.vjp(theirs, *arrays)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(expected.shape))
    assert y.shape == expected.shape
    for a, b in zip((y, *pull(dy)), (expected, *expected_pull(dy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def assert_lowers_alike(mine, theirs, *arrays):
    """The same operators on a TPU and a GPU, forward and backward."""

    def operators(f, platform):
        def program(*arrays):
            y, pull = jax.vjp(f, *arrays)
            return y, pull(y)

        text = jax.jit(program).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        chosen = {"case", "return", "constant"}  # of one branch: the platform's own
        return collections.Counter(name for name in re.findall(r"stablehlo\.(\w+)", text) if name not in chosen)

    for platform in ("tpu", "cuda"):
        found = operators(mine, platform)
        assert found == operators(theirs, platform)
    assert operators(mine, "cpu") != found


def convolution(case):
    h, w, cin, cout, kernel, *how = CONVOLUTIONS[case]
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((2, h, w, cin)), rng.standard_normal((*kernel, cin // how[-1], cout))
    return (lambda x, k: grouped_conv(x, k, *how)), (lambda x, k: conv(x, k, *how)), x, k


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_grouped_convolution(case):
    with jax.enable_x64(True):
        assert_alike(*convolution(case))


@pytest.mark.parametrize("case", ["depthwise", "narrow groups"])
def test_other_platforms_keep_the_convolution(case):
    assert_lowers_alike(*convolution(case))


@pytest.mark.parametrize("case", WINDOWS)
def test_window_reductions(case):
    h, w, *how = WINDOWS[case]
    with jax.enable_x64(True):
        x = np.random.default_rng(0).integers(-3, 4, (2, h, w, 3)).astype(np.float64)  # with equal values in windows
        assert_alike(lambda x: window_sum(x, *how, x.shape), lambda x: xla_sum(x, *how, x.shape), x)
        assert_alike(lambda x: window_max(x, *how), lambda x: xla_max(x, *how), x)


def test_other_platforms_keep_the_reductions():
    h, w, *how = WINDOWS["strided"]
    x = jnp.ones((2, h, w, 3))
    assert_lowers_alike(lambda x: window_sum(x, *how, x.shape), lambda x: xla_sum(x, *how, x.shape), x)
    assert_lowers_alike(lambda x: window_max(x, *how), lambda x: xla_max(x, *how), x)


def test_bfloat16_is_summed_in_float32():
    """49 products of a depthwise convolution: rounded once, not at every tap."""
    mine, _, x, k = convolution("depthwise")
    y, pull = jax.vjp(mine, x.astype(jnp.bfloat16), k.astype(jnp.bfloat16))
    exact, exact_pull = jax.vjp(mine, *(jnp.asarray(a.astype(jnp.bfloat16), jnp.float32) for a in (x, k)))
    dy = jnp.ones_like(y)
    for a, b in zip((y, *pull(dy)), (exact, *exact_pull(dy.astype(jnp.float32))), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-8, atol=1e-6)
