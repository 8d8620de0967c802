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
