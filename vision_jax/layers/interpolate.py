"""Images and maps at another size, as torch's `interpolate` makes them; for tables of positions see `resample`."""

import functools

import jax.numpy as jnp
import numpy as np


def bicubic(x, size):
    """Bicubic interpolation of a map, [B, H, W, C] -> [B, *size, C].

    Torch's: kernel parameter -0.75, pixels' centres aligned, the border repeated, no antialiasing.
    """
    return _interpolated(x, size, _bicubic_taps)


def bicubic_antialiased(x, size):
    """Bicubic interpolation of a map, [B, H, W, C] -> [B, *size, C], which a smaller size averages over more pixels.

    Torch's with antialiasing: kernel parameter -0.5, pixels beyond the border do not count.
    """
    rows, columns = (_antialiased_weights(n, out).astype(x.dtype) for n, out in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x)


def bilinear(x, size, align_corners=False):
    """Bilinear interpolation of a map, [B, H, W, C] -> [B, *size, C]: torch's, as above but of two pixels an axis.

    `align_corners`: the corners' pixels, not the pixels' outer borders, lie on each other.
    """
    return _interpolated(x, size, functools.partial(_bilinear_taps, align_corners=align_corners))


def _interpolated(x, size, taps_of):
    for axis, out in zip((1, 2), size, strict=True):
        shape = [out if i == axis else 1 for i in range(4)]
        taps = zip(*taps_of(x.shape[axis], out), strict=True)
        x = sum(jnp.take(x, pixels, axis) * weights.astype(x.dtype).reshape(shape) for pixels, weights in taps)
    return x


@functools.cache
def _bicubic_taps(n, out):
    """(pixels, weights), [4, out] each: the four that make each new pixel (Keys' a = -0.75)."""
    centre = (np.arange(out) + 0.5) * n / out - 0.5
    pixels = np.floor(centre) + np.arange(-1, 3)[:, None]
    return np.clip(pixels, 0, n - 1).astype(np.int32), _cubic(np.abs(centre - pixels), -0.75)


def _cubic(d, a):
    """The weight of a pixel at distance d (Keys, 1981, equation 4)."""
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


@functools.cache
def _antialiased_weights(n, out):
    """[out, n]: the weight of each pixel in each new one."""
    centre = (np.arange(out) + 0.5) * n / out - 0.5
    weights = _cubic(np.abs(np.arange(n) - centre[:, None]) / max(n / out, 1), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def _bilinear_taps(n, out, align_corners):
    """(pixels, weights), [2, out] each."""
    steps = np.arange(out)
    centre = steps * (n - 1) / max(out - 1, 1) if align_corners else np.maximum((steps + 0.5) * n / out - 0.5, 0)
    pixels = np.floor(centre) + np.arange(2)[:, None]
    return np.minimum(pixels, n - 1).astype(np.int32), 1 - np.abs(centre - pixels)
