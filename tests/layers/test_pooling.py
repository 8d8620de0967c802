"""Pooling against the definition, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.pooling import avg_pool, max_pool, padded_mean


def windows(x, window, stride, padding, ceil_mode):
    """The elements of every window as torch defines them: [[a list of rows [C] for each column of windows] ...]."""
    height, width = x.shape[:2]

    def starts(size):
        steps = (size + 2 * padding - window) / stride
        count = int(np.ceil(steps) if ceil_mode else np.floor(steps)) + 1
        if ceil_mode and (count - 1) * stride >= size + padding:  # a window must start inside
            count -= 1
        return [i * stride - padding for i in range(count)]

    return [
        [
            [
                x[i, j]
                for i in range(top, top + window)
                for j in range(left, left + window)
                if 0 <= i < height and 0 <= j < width
            ]
            for left in starts(width)
        ]
        for top in starts(height)
    ]


@pytest.mark.heavy
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 3, 0), (3, 3, 0), (2, 2, 1)]
)
@pytest.mark.parametrize("size", [(7, 6), (4, 9), (3, 5)])
def test_average(size, window, stride, padding, ceil_mode):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    wanted = [
        [[np.mean(cell, axis=0) for cell in row] for row in windows(image, window, stride, padding, ceil_mode)]
        for image in x
    ]
    with jax.enable_x64(True):
        given = avg_pool(x, window, stride=stride, padding=padding, ceil_mode=ceil_mode)
        assert given.dtype == jnp.float64
    np.testing.assert_allclose(given, wanted, rtol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
def test_mean_with_zeros_beyond_the_edges(stride):
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    wanted = [
        [[np.sum(cell, axis=0) / 9 for cell in row] for row in windows(image, 3, stride, 1, False)] for image in x
    ]
    np.testing.assert_allclose(padded_mean(x, 3, stride), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_maximum(window, stride, padding):
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32) - 3
    wanted = [
        [[np.max(cell, axis=0) for cell in row] for row in windows(image, window, stride, padding, False)]
        for image in x
    ]
    np.testing.assert_array_equal(max_pool(x, window, stride=stride, padding=padding), wanted)


@pytest.mark.parametrize("size", [6, 7])
def test_maximum_with_padding_as_tensorflows(size):
    x = np.arange(-50.0, size * size - 50).reshape(1, size, size, 1)
    after = np.minimum(np.arange(0, size, 2) + (2 if size % 2 == 0 else 1), size - 1)  # the last of each window
    np.testing.assert_array_equal(max_pool(x, 3, stride=2, padding="same")[0, :, :, 0], x[0, after][:, after][:, :, 0])


def test_average_of_bfloat16_stays_bfloat16():
    assert avg_pool(jnp.ones((1, 5, 5, 2), jnp.bfloat16), 2, stride=2, ceil_mode=True).dtype == jnp.bfloat16
