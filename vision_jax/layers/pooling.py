"""Pooling over the spatial axes of a channels-last map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.layers.conv import pair
from vision_jax.layers.window_reduce import window_max, window_sum


def max_pool(x, window, *, stride, padding=0):
    """The largest value of each window, [B, H, W, C] -> [B, H', W', C]; padding never wins (torch's MaxPool2d).

    `padding` "same" is TensorFlow's, an odd element of it at the far end.
    """
    window, stride = pair(window), pair(stride)
    if padding == "same":
        pads = tuple(jax.lax.padtype_to_pads(x.shape[1:3], window, stride, "SAME"))
    else:
        pads = tuple((p, p) for p in pair(padding))
    return window_max(x, window, stride, pads)


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
    total = window_sum(x, pair(window), pair(stride), pads, x.shape)
    return total / np.outer(rows, columns)[..., None].astype(x.dtype)


def padded_mean(x, window, stride):
    """The mean of each window, pixels beyond the edges being zeros, [B, H, W, C] -> [B, H/stride, W/stride, C].

    torch's AvgPool2d with the padding of an odd window, which counts (count_include_pad=True).
    """
    pad = (window // 2, window // 2)
    return avg_pool(jnp.pad(x, ((0, 0), pad, pad, (0, 0))), window, stride=stride)


def pool_mixer(x, train=None):
    """The average of a pixel's 3x3 neighbours within the map, less the pixel, which a shortcut adds again.

    The token mixer of PoolFormer (Yu et al., 2022, arXiv:2111.11418, equation 4), [B, H, W, C] -> [B, H, W, C].
    """
    return avg_pool(x, 3, stride=1, padding=1) - x


@functools.cache
def _windows(size, window, stride, padding, ceil_mode):
    """((padding before, after), number of an axis' elements in each window)."""
    count = (size + 2 * padding - window) // stride + 1
    if ceil_mode:
        count = min(-(-(size + 2 * padding - window) // stride) + 1, (size + padding - 1) // stride + 1)
    starts = np.arange(count) * stride - padding
    after = max(padding, int(starts[-1]) + window - size)
    return (padding, after), np.minimum(starts + window, size) - np.maximum(starts, 0)


def adaptive_avg_pool(x, size):
    """Averages over `size` bins an axis, [B, H, W, C] -> [B, *size, C] (torch's AdaptiveAvgPool2d; size an int or two).

    Bin i of n runs from floor(i H / n) to ceil((i + 1) H / n): the bins overlap where n does not divide H, and repeat
    pixels where n is above H. Each axis is one matrix product, or equal bins are averaged as they lie.
    """
    (B, H, W, C), (h, w) = x.shape, pair(size)
    if H % h == 0 and W % w == 0:
        return x.reshape(B, h, H // h, w, W // w, C).mean((2, 4))
    rows, columns = (_bins(n, out) for n, out in zip((H, W), (h, w), strict=True))
    return jnp.einsum("yh,xw,bhwc->byxc", rows.astype(x.dtype), columns.astype(x.dtype), x)


@functools.cache
def _bins(n, out):
    """[out, n]: the weight of each pixel in each bin."""
    starts, ends = np.arange(out) * n // out, -(-np.arange(1, out + 1) * n // out)
    inside = (starts[:, None] <= np.arange(n)) & (np.arange(n) < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
