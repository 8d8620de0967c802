"""A global filter is a circular convolution with the filter's own transform."""

import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.errors import InputError
from vision_jax.layers.spectral import GlobalFilter


@pytest.mark.parametrize("size", [(4, 5), (3, 6)])
def test_equals_a_circular_convolution(size):
    (h, w), layer, x = size, GlobalFilter(2, size), tiny.normal(1, *size, 2)
    frequencies = np.fft.rfft2(tiny.normal(*size, 2), axes=(0, 1))
    layer.complex_weight.set_value(jnp.stack([frequencies.real, frequencies.imag], axis=-1).astype(jnp.float32))
    kernel = np.fft.irfft2(frequencies, s=size, axes=(0, 1))
    wanted = np.zeros((*size, 2))
    for i in range(h):
        for j in range(w):
            wanted += np.roll(x[0], (i, j), axis=(0, 1)) * kernel[i, j]
    np.testing.assert_allclose(layer(x)[0], wanted, rtol=0, atol=1e-5)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"a map of 4 x 4 given, the filter is for \(3, 4\): img_size="):
        GlobalFilter(2, (3, 4))(tiny.normal(1, 4, 4, 2))


@pytest.mark.parametrize(("side", "size"), [(4, (6, 7)), (5, (8, 6)), (6, (4, 3)), (5, (3, 9))])
def test_a_filter_for_another_map_is_the_same_convolution(side, size):
    frequencies = np.fft.rfft2(tiny.normal(side, side, 2), axes=(0, 1))
    given = np.stack([frequencies.real, frequencies.imag], axis=-1).astype(np.float32)
    found = GlobalFilter(2, size).resample("complex_weight", given)
    assert found.shape == (size[0], size[1] // 2 + 1, 2, 2)
    old = np.fft.irfft2(frequencies, s=(side, side), axes=(0, 1))
    new = np.fft.irfft2(found[..., 0] + 1j * found[..., 1], s=size, axes=(0, 1))
    wanted = np.zeros((*size, 2))
    rows, columns = (range(-(min(side, n) // 2), (min(side, n) + 1) // 2) for n in size)
    for i in rows:
        for j in columns:
            wanted[i % size[0], j % size[1]] = old[i % side, j % side]
    np.testing.assert_allclose(new, wanted, rtol=0, atol=1e-5)
