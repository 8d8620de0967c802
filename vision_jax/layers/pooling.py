"""Pooling over the spatial axes of a channels-last map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.layers.conv import pair


def max_pool(x, window, *, stride, padding=0):
    """The largest value of each window, [B, H, W, C] -> [B, H', W', C]; padding never wins (torch's MaxPool2d)."""
    window, stride, padding = pair(window), pair(stride), pair(padding)
    pads = ((0, 0), *((p, p) for p in padding), (0, 0))
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), pads)


def adaptive_avg_pool(x, size):
    """Averages over `size` bins an axis, [B, H, W, C] -> [B, *size, C] (torch's AdaptiveAvgPool2d; size an int or two).

    Bin i of n runs from floor(i H / n) to ceil((i + 1) H / n): the bins overlap where n does not divide H, and repeat
    pixels where n is above H. Each axis is one matrix product.
    """
    rows, columns = (_bins(n, out) for n, out in zip(x.shape[1:3], pair(size), strict=True))
    return jnp.einsum("yh,xw,bhwc->byxc", rows.astype(x.dtype), columns.astype(x.dtype), x)


@functools.cache
def _bins(n, out):
    """[out, n]: the weight of each pixel in each bin."""
    starts, ends = np.arange(out) * n // out, -(-np.arange(1, out + 1) * n // out)
    inside = (starts[:, None] <= np.arange(n)) & (np.arange(n) < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
