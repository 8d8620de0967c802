"""How neighborhood attention cuts a map: into dilation groups, and these into tiles of queries with halos of keys."""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from vision_jax.kernels.limits import largest_divisor
from vision_jax.kernels.neighborhood_attention.windows import axis_windows

TILE = {1: 64, 2: 8, 3: 4}  # queries along an axis, for maps of one, two, three axes: 64 rows for the matrix unit


class Axis(NamedTuple):
    """One axis: what is asked for, and how it is cut.

    Attributes:
      size, kernel_size, stride, dilation, is_causal, border: as in `axis_windows`.
      tile: queries of a tile; tiles: how many cover a group; chunk: how many of them a step takes.
      left, right: keys before and after a tile that its windows reach.
    """

    size: int
    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool
    border: str
    tile: int = 0
    tiles: int = 1
    chunk: int = 1
    left: int = 0
    right: int = 0

    @property
    def length(self):
        """Places of the longest group."""
        return -(-self.size // self.dilation)

    @property
    def halo(self):
        """Keys of a tile."""
        return self.left + self.tile + self.right

    def cut(self, tile):
        """The same axis in tiles of at most this many queries, all about equally full."""
        tiles = -(-self.length // tile)
        cut = self._replace(tile=-(-self.length // tiles), tiles=tiles)
        start, stop = group_windows(cut)
        begin = np.arange(start.shape[1]) // cut.tile * cut.tile
        return cut._replace(left=max(0, int((begin - start).max())), right=max(0, int((stop - begin - cut.tile).max())))


class Plan(NamedTuple):
    """The axes of a map, and how many dilation groups a step takes."""

    axes: tuple
    groups: int

    @property
    def all_groups(self):
        """Number of dilation groups."""
        return math.prod(axis.dilation for axis in self.axes)

    @property
    def queries(self):
        """The same tiles without halos."""
        return self._replace(axes=tuple(axis._replace(left=0, right=0) for axis in self.axes))


@functools.cache
def group_windows(axis):
    """(start, stop), int [groups, tiles * tile]: the windows of `axis_windows`, a row a dilation group of the axis.

    One row stands for all where they agree. Beyond the end of a group the last window is repeated, so that no query is
    without keys.
    """
    windows = axis_windows(*axis[:6])
    phase = np.arange(axis.dilation)[:, None]
    last = -(-(axis.size - phase) // axis.dilation) - 1
    position = np.minimum(np.arange(axis.tiles * axis.tile), last) * axis.dilation + phase
    tables = windows.start[position], windows.stop[position]
    same = all((table == table[:1]).all() for table in tables)
    return tuple(table[:1] if same else table for table in tables)


@functools.cache
def make_plan(sizes, kernel_size, stride, dilation, is_causal, border, head_dim):
    """The plan of a map of these sizes; options are tuples, one element an axis.

    Of tiles of `TILE` queries along each axis, or twice that, or four times, ..., those with the fewest scores: small
    ones waste less, but all have the halo of the outermost, whose windows moved inward. A step takes no more scores
    than the map has elements, tokens * head_dim for each head; or one tile, with up to twice as many where it is larger
    than the least. So memory grows with tokens whatever the window.
    """
    axes = [
        Axis(size, *options, border)
        for size, *options in zip(sizes, kernel_size, stride, dilation, is_causal, strict=True)
    ]
    room, tile = math.prod(sizes) * head_dim, TILE[len(sizes)]
    best = cut = [axis.cut(tile) for axis in axes]
    while any(axis.tiles > 1 for axis in cut):
        tile *= 2
        cut = [axis.cut(tile) for axis in axes]
        if _scores_of_tile(cut) <= 2 * room and _scores(cut) < _scores(best):
            best = cut
    room //= _scores_of_tile(best)
    for i, axis in reversed(list(enumerate(best))):
        best[i] = axis._replace(chunk=largest_divisor(axis.tiles, room))
        room //= best[i].chunk
    return Plan(tuple(best), largest_divisor(math.prod(dilation), room))


def _scores_of_tile(axes):
    return math.prod(axis.tile * axis.halo for axis in axes)


def _scores(axes):
    return math.prod(axis.tiles * axis.tile * axis.halo for axis in axes)


def origins(plan):
    """Where each step begins, int32 [steps, 1 + axes]: the first of its groups, and along each axis its first query."""
    starts = [range(0, plan.all_groups, plan.groups)]
    starts += [range(0, axis.tiles * axis.tile, axis.chunk * axis.tile) for axis in plan.axes]
    return np.array(list(itertools.product(*starts)), np.int32)
