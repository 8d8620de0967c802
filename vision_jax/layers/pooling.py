"""Pooling over the spatial axes of a channels-last map."""

import functools

import jax
import numpy as np

from vision_jax.layers.conv import pair


def max_pool(x, window, *, stride, padding=0):
    """The largest value of each window, [B, H, W, C] -> [B, H', W', C]; padding never wins (torch's MaxPool2d)."""
    window, stride, padding = pair(window), pair(stride), pair(padding)
    pads = ((0, 0), *((p, p) for p in padding), (0, 0))
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), pads)


def avg_pool(x, window, *, stride, padding=0, ceil_mode=False):
    """The mean of each window, [B, H, W, C] -> [B, H', W', C]; padding does not count (torch: count_include_pad=False).

    Args:
      x: the map.
      window, stride: an int or one for each axis.
      padding: an int or one for each axis, on both sides.
      ceil_mode: keep windows that start before the far edge and reach beyond it; what they miss does not count.
    """
    axes = zip(x.shape[1:3], pair(window), pair(stride), pair(padding), strict=True)
    pads, (rows, columns) = zip(*(_windows(*axis, ceil_mode) for axis in axes), strict=True)
    total = jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, *pair(window), 1), (1, *pair(stride), 1), ((0, 0), *pads, (0, 0))
    )
    return total / np.outer(rows, columns)[..., None].astype(x.dtype)


@functools.cache
def _windows(size, window, stride, padding, ceil_mode):
    """((padding before, after), number of an axis' elements in each window)."""
    count = (size + 2 * padding - window) // stride + 1
    if ceil_mode:
        count = min(-(-(size + 2 * padding - window) // stride) + 1, (size + padding - 1) // stride + 1)
    starts = np.arange(count) * stride - padding
    after = max(padding, int(starts[-1]) + window - size)
    return (padding, after), np.minimum(starts + window, size) - np.maximum(starts, 0)
