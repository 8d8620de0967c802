"""Sliding windows over a channels-last map, tap by tap: what CPUs compute fast, because it is elementwise.

Output p of a window sees pixel stride p + dilation t - padding through tap t. All taps are shifted views of one padded
map; an expression of them is one vectorised loop to XLA, where its own window operators are scalar ones.
"""

import itertools

import jax
import jax.numpy as jnp


def padded(x, pads, value=0):
    """A map with a constant around, [B, H, W, C] -> [B, H', W', C].

    Args:
      x: the map.
      pads: (before, after) or (before, after, between neighbours) for each axis; a negative one crops.
      value: the constant.
    """
    pads = [(0, 0, 0), *((*pad, 0)[:3] for pad in pads), (0, 0, 0)]
    # Kept apart from what follows, which would otherwise ask at every tap where the border is.
    return jax.lax.optimization_barrier(jax.lax.pad(x, jnp.array(value, x.dtype), pads))


def sizes(shape, kernel, stride, padding, dilation=(1, 1)):
    """(H', W') of the output for a map [B, H, W, C] and kernel [kh, kw, ...]."""
    axes = zip(shape[1:], kernel, stride, padding, dilation, strict=False)
    return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def strided(x, start, size, step):
    """[B, *size, C]: every `step`-th position of a map from `start`."""
    stops = [a + (n - 1) * s + 1 for a, n, s in zip(start, size, step, strict=True)]
    return x[:, start[0] : stops[0] : step[0], start[1] : stops[1] : step[1]]


def taps(x, kernel, size, stride, dilation=(1, 1)):
    """What each tap of a kernel [kh, kw, ...] sees of a padded map, row by row: a list of [B, *size, C]."""
    grid = itertools.product(range(kernel[0]), range(kernel[1]))
    return [strided(x, (i * dilation[0], j * dilation[1]), size, stride) for i, j in grid]


def gathering(shape, size, kernel, stride, padding, dilation=(1, 1)):
    """Pads that spread a gradient [B, *size, C] so that each pixel sees, tap by tap from the last, who saw it.

    `taps(padded(dy, pads), kernel, (H, W), (1, 1), dilation)` are then the gradients that reach the pixels of a map
    [B, H, W, C] through the last tap, the last but one, ..., the first.
    """
    pads = []
    for n, out, k, s, (before, _), d in zip(shape[1:], size, kernel, stride, padding, dilation, strict=False):
        low = d * (k - 1) - before
        pads.append((low, n + d * (k - 1) - low - (out - 1) * s - 1, s - 1))
    return pads
