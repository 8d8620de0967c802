import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.layers.cond_conv import CondConv


@pytest.mark.parametrize(("kernel_size", "stride", "groups"), [(1, 1, 1), (3, 1, 6), (5, 2, 6)])
def test_equals_the_paper(kernel_size, stride, groups):
    """Section 3 of arXiv:1904.04971, a pixel at a time: (sum of the weighted experts' kernels) * x."""
    rng, (B, H, W, C), dout, pad = (
        np.random.default_rng(0),
        (2, 5, 4, 6),
        groups if groups > 1 else 12,
        kernel_size // 2,
    )
    x, weights = rng.normal(size=(B, H, W, C)), rng.uniform(size=(B, 3))
    with jax.enable_x64(True):
        layer = CondConv(C, dout, kernel_size, 3, stride=stride, groups=groups, dtype=jnp.float64)
        tiny.refilled(layer)
        ours = np.asarray(layer(jnp.asarray(x), jnp.asarray(weights)))
        experts = np.asarray(layer.kernel[...])
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    wanted = np.zeros_like(ours)
    for b, i, j, o in np.ndindex(*ours.shape):
        first = o // (dout // groups) * (C // groups)
        rows, columns = (slice(n * stride, n * stride + kernel_size) for n in (i, j))
        kernel = sum(weights[b, e] * experts[e, ..., o] for e in range(3))
        wanted[b, i, j, o] = (padded[b, rows, columns, first : first + C // groups] * kernel).sum()
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)


def test_others_are_refused():
    with pytest.raises(ValueError, match="groups=2: pointwise or depthwise"):
        CondConv(6, 12, 3, 3, groups=2)
