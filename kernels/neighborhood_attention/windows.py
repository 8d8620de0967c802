"""Which keys a query of neighborhood attention sees along one axis, as tables: what every implementation shares."""

import functools
from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """The windows of an axis: for each position, places within its dilation group (position // dilation), int arrays.

    Attributes:
      first: place of the window's first key, whether or not it takes part; the window has kernel_size places.
      start, stop: the keys at start <= place < stop take part. With border="zero" some may lie outside of the map.
    """

    first: np.ndarray
    start: np.ndarray
    stop: np.ndarray


@functools.cache
def axis_windows(size, kernel_size, stride, dilation, is_causal, border):
    """The windows of all positions of an axis; with border="shift" they are NATTEN's (arXiv:2504.16922, section 3).

    Positions `dilation` apart form a group, and windows stay in it. `stride` neighbours in a group share the window of
    their leader: the middle one (right of the middle where stride is even), the last one under causality.

    Args:
      size: positions of the axis.
      kernel_size, stride, dilation, is_causal: of this axis.
      border: "shift": a window that would leave the map moves inward; "mask": what lies outside does not take part;
        "zero": it takes part, with keys and values of zero. A causal window never moves: "shift" is "mask" there.
    """
    position = np.arange(size)
    place, length = position // dilation, -(-(size - position % dilation) // dilation)
    leader = place // stride * stride + (stride - 1 if is_causal else stride // 2)
    leader = np.minimum(leader, length - 1)
    if is_causal:
        first, stop = leader - kernel_size + 1, place + 1
    else:
        half = kernel_size // 2
        first = (np.clip(leader, half, length - 1 - half) if border == "shift" else leader) - half
        stop = first + kernel_size
    if border == "zero":
        return Windows(first, first, stop)
    return Windows(first, np.maximum(first, 0), np.minimum(stop, length))
