"""Images and maps at another size, as torch's `interpolate` makes them; for tables of positions see `resample`."""

import functools

import jax.numpy as jnp
import numpy as np


def bicubic(x, size):
    """Bicubic interpolation of a map, [B, H, W, C] -> [B, *size, C].

    Torch's: kernel parameter -0.75, pixels' centres aligned, the border repeated, no antialiasing. Each axis is one
    matrix product.
    """
    rows, columns = (_bicubic_weights(n, out) for n, out in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("yh,xw,bhwc->byxc", rows.astype(x.dtype), columns.astype(x.dtype), x)


@functools.cache
def _bicubic_weights(n, out):
    """[out, n]: the weight of each pixel in each new one (Keys, 1981, equation 4 with a = -0.75)."""
    a = -0.75
    centre = (np.arange(out) + 0.5) * n / out - 0.5
    weights = np.zeros((out, n))
    for offset in range(-1, 3):
        pixel = np.floor(centre) + offset
        d = np.abs(centre - pixel)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
        place = np.clip(pixel, 0, n - 1).astype(int)
        np.add.at(weights, (np.arange(out), place), np.where(d <= 1, near, far))
    return weights
