"""Pooling over the spatial axes of a channels-last map."""

import jax
import numpy as np

from vision_jax.layers.conv import pair


def max_pool(x, window, *, stride, padding=0):
    """The largest value of each window, [B, H, W, C] -> [B, H', W', C]; padding never wins (torch's MaxPool2d)."""
    window, stride, padding = pair(window), pair(stride), pair(padding)
    pads = ((0, 0), *((p, p) for p in padding), (0, 0))
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), pads)
