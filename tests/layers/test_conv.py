import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.layers.conv import Conv
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.pooling import max_pool
from vision_jax.layers.standardized_conv import StandardizedConv


def _slow_conv(x, kernel, bias, stride, padding, dilation, groups):
    """torch's Conv2d written out: every output, every tap, every channel."""
    (kh, kw, per_group, dout), (B, H, W, _) = kernel.shape, x.shape
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    ho = (H + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (W + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((B, ho, wo, dout))
    for o in range(dout):
        first = o // (dout // groups) * per_group
        for i, j in np.ndindex(ho, wo):
            for a, b, c in np.ndindex(kh, kw, per_group):
                pixel = x[:, i * stride[0] + a * dilation[0], j * stride[1] + b * dilation[1], first + c]
                out[:, i, j, o] += pixel * kernel[a, b, c, o]
    return out + bias


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "groups"),
    [
        (3, 1, None, 1, 1),
        (3, 2, None, 1, 1),
        ((3, 1), (2, 1), (0, 2), (1, 3), 1),
        (3, 1, None, 2, 2),
        (5, 2, None, 1, 4),
        (2, 2, 0, 1, 1),
    ],
)
def test_conv(kernel_size, stride, padding, dilation, groups):
    with jax.enable_x64(True):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        layer = tiny.refilled(Conv(4, 8, kernel_size, dtype=jnp.float64, **options))
        x = tiny.normal(2, 7, 6, 4, dtype=np.float64)
        stride, dilation = (v if isinstance(v, tuple) else (v, v) for v in (stride, dilation))
        if padding is None:
            padding = dilation[0] * (kernel_size - 1) // 2
        padding = padding if isinstance(padding, tuple) else (padding, padding)
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        got = layer(x)
        assert got.dtype == np.float64
        np.testing.assert_allclose(
            got, _slow_conv(np.asarray(x), kernel, bias, stride, padding, dilation, groups), rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize("unbiased", [False, True])
def test_standardized_conv(unbiased):
    """Equations 4 and 5 of arXiv:1903.10520, filter by filter."""
    with jax.enable_x64(True):
        options = dict(standard_epsilon=0.1, unbiased=unbiased, groups=2, dtype=jnp.float64)
        layer, x = tiny.refilled(StandardizedConv(4, 6, 3, **options)), tiny.normal(2, 5, 4, 4, dtype=np.float64)
        got, kernel = layer(x), np.array(layer.kernel[...])
        for o in range(6):
            w = kernel[..., o]
            kernel[..., o] = (w - w.mean()) / np.sqrt(w.var(ddof=int(unbiased)) + 0.1)
        expected = _slow_conv(np.asarray(x), kernel, np.asarray(layer.bias[...]), (1, 1), (1, 1), (1, 1), 2)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


def test_conv_draws_by_its_fans():
    from vision_jax.parameters import kaiming_normal

    layer = Conv(8, 16, 3, groups=4, init=kaiming_normal)
    assert layer.kernel.get_metadata()["init"].std == pytest.approx(np.sqrt(2 / (9 * 16 / 4)))  # fan out
    layer = Conv(8, 16, (1, 3), bias=False)
    assert layer.bias is None
    assert layer.kernel.shape == (1, 3, 8, 16)


def test_patch_embed():
    with jax.enable_x64(True):
        layer = tiny.refilled(PatchEmbed(3, 5, (2, 4), dtype=jnp.float64))
        x = tiny.normal(2, 6, 8, 3, dtype=np.float64)
        patches = np.asarray(x).reshape(2, 3, 2, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 3, 2, 24)
        expected = patches @ np.asarray(layer.proj.kernel[...]).reshape(24, 5) + np.asarray(layer.proj.bias[...])
        np.testing.assert_allclose(layer(x), expected, rtol=1e-11, atol=1e-12)
        normed = PatchEmbed(
            3, 5, (2, 4), norm=lambda dim: LayerNorm(dim, epsilon=0.0, dtype=jnp.float64), dtype=jnp.float64
        )
        np.testing.assert_allclose(np.asarray(normed(x)).std(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), ((2, 3), (1, 2), (0, 1))])
def test_max_pool(window, stride, padding):
    x = -1 - abs(np.asarray(tiny.normal(2, 7, 6, 3)))  # negative: padding with zeros would win
    (kh, kw), (sh, sw), (ph, pw) = (v if isinstance(v, tuple) else (v, v) for v in (window, stride, padding))
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=-np.inf)
    ho, wo = (7 + 2 * ph - kh) // sh + 1, (6 + 2 * pw - kw) // sw + 1
    expected = np.zeros((2, ho, wo, 3), np.float32)
    for i, j in np.ndindex(ho, wo):
        expected[:, i, j] = padded[:, i * sh : i * sh + kh, j * sw : j * sw + kw].max((1, 2))
    np.testing.assert_array_equal(max_pool(jnp.array(x), window, stride=stride, padding=padding), expected)


def test_max_pool_has_a_gradient():
    grad = jax.grad(lambda x: max_pool(x, 2, stride=2).sum())(jnp.arange(16.0).reshape(1, 4, 4, 1))
    np.testing.assert_array_equal(np.flatnonzero(grad), [5, 7, 13, 15])


def test_dtypes():
    x = jnp.ones((1, 4, 4, 3))
    layer = Conv(3, 4, 3, dtype=jnp.bfloat16)
    assert layer.kernel.dtype == layer.bias.dtype == jnp.float32
    assert layer(x).dtype == jnp.bfloat16
    assert max_pool(layer(x), 2, stride=2).dtype == jnp.bfloat16
