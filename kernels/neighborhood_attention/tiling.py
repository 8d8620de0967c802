"""A map cut into dilation groups, and these into tiles of queries, each with the halo of keys that its windows reach.

Axes are written as follows: B batch, P dilation groups, then for each axis of the map its places in a group. A step of
the loop takes `groups` groups and a chunk of tiles: C tiles of Q queries and K keys.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
        best[i] = axis._replace(chunk=_largest_divisor(axis.tiles, room))
        room //= best[i].chunk
    return Plan(tuple(best), _largest_divisor(math.prod(dilation), room))


def _scores_of_tile(axes):
    return math.prod(axis.tile * axis.halo for axis in axes)


def _scores(axes):
    return math.prod(axis.tiles * axis.tile * axis.halo for axis in axes)


def _largest_divisor(n, limit):
    return next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)


def origins(plan):
    """Where each step begins, int32 [steps, 1 + axes]: the first of its groups, and along each axis its first query."""
    starts = [range(0, plan.all_groups, plan.groups)]
    starts += [range(0, axis.tiles * axis.tile, axis.chunk * axis.tile) for axis in plan.axes]
    return np.array(list(itertools.product(*starts)), np.int32)


def to_groups(x, plan, fill=0):
    """[B, *sizes, ...] -> [B, P, *(tiles * tile), ...]; `fill` beyond the ends of groups."""
    axes, n = plan.axes, len(plan.axes)
    pads = [(0, axis.tiles * axis.tile * axis.dilation - axis.size) for axis in axes]
    x = jnp.pad(x, ((0, 0), *pads, *((0, 0),) * (x.ndim - n - 1)), constant_values=fill)
    x = x.reshape(len(x), *(size for a in axes for size in (a.tiles * a.tile, a.dilation)), *x.shape[n + 1 :])
    x = x.transpose(0, *range(2, 2 * n + 1, 2), *range(1, 2 * n, 2), *range(2 * n + 1, x.ndim))
    return x.reshape(len(x), plan.all_groups, *x.shape[n + 1 :])


def from_groups(x, plan):
    """The inverse of `to_groups`."""
    axes, n = plan.axes, len(plan.axes)
    x = x.reshape(len(x), *(axis.dilation for axis in axes), *x.shape[2:])
    x = x.transpose(0, *(i for a in range(n) for i in (1 + n + a, 1 + a)), *range(2 * n + 1, x.ndim))
    x = x.reshape(len(x), *(axis.tiles * axis.tile * axis.dilation for axis in axes), *x.shape[2 * n + 1 :])
    return x[(slice(None), *(slice(axis.size) for axis in axes))]


def with_halo(x, plan):
    """What belongs to keys, [B, *sizes, ...] -> [B, P, *(left + tiles * tile + right), ...], zeros around."""
    x = to_groups(x, plan)
    pads = [(axis.left, axis.right) for axis in plan.axes]
    return jnp.pad(x, ((0, 0), (0, 0), *pads, *((0, 0),) * (x.ndim - len(pads) - 2)))


def without_halo(x, plan):
    """The inverse of `with_halo`."""
    inner = (slice(axis.left, axis.left + axis.tiles * axis.tile) for axis in plan.axes)
    return from_groups(x[(slice(None), slice(None), *inner)], plan)


def take(x, origin, plan):
    """The keys of a step's tiles, of what `with_halo` gave: [B, groups, C, K, ...].

    With `plan.queries` the queries, of what `to_groups` gave: [B, groups, C, Q, ...].
    """
    return _halos(_region(x, origin, plan), plan)


def put(x, origin, plan, tiles):
    """x with a step's tiles where `take` reads them, which must not overlap."""
    return jax.lax.dynamic_update_slice(x, _from_halos(tiles, plan), _corner(x, origin))


def add(x, origin, plan, tiles):
    """x with a step's tiles added where `take` reads them."""
    return jax.lax.dynamic_update_slice(x, _region(x, origin, plan) + _from_halos(tiles, plan), _corner(x, origin))


def _region(x, origin, plan):
    shape = (len(x), plan.groups, *_region_lengths(plan), *x.shape[2 + len(plan.axes) :])
    return jax.lax.dynamic_slice(x, _corner(x, origin), shape)


def _region_lengths(plan):
    return [(axis.chunk - 1) * axis.tile + axis.halo for axis in plan.axes]


def _corner(x, origin):
    return (np.int32(0), *origin, *(np.int32(0),) * (x.ndim - len(origin) - 1))


def _halos(x, plan):
    """A region -> its tiles with their halos."""
    for i, axis in enumerate(plan.axes):
        at = 2 + 2 * i  # behind the chunks and halos of the axes before
        blocks = -(-axis.halo // axis.tile)  # a halo begins with a block of its own and takes this many
        x = _pad_end(x, at, (axis.chunk - 1 + blocks) * axis.tile)
        x = x.reshape(*x.shape[:at], -1, axis.tile, *x.shape[at + 1 :])
        x = jnp.stack([jax.lax.slice_in_dim(x, j, j + axis.chunk, axis=at) for j in range(blocks)], at + 1)
        x = x.reshape(*x.shape[: at + 1], -1, *x.shape[at + 3 :])
        x = jnp.moveaxis(jax.lax.slice_in_dim(x, 0, axis.halo, axis=at + 1), at, 2 + i)
    K = math.prod(axis.halo for axis in plan.axes)
    return x.reshape(*x.shape[:2], -1, K, *x.shape[2 + 2 * len(plan.axes) :])


def _from_halos(x, plan):
    """The transpose of `_halos`: overlaps are added."""
    shape = jax.ShapeDtypeStruct((*x.shape[:2], *_region_lengths(plan), *x.shape[4:]), x.dtype)
    return jax.linear_transpose(lambda region: _halos(region, plan), shape)(x)[0]


def _pad_end(x, axis, length):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, pads)


def takes_part(origin, plan):
    """Which keys of a tile's halo its queries see in this step: bool [groups or 1, C, Q, K]."""
    n, dilations = len(plan.axes), tuple(axis.dilation for axis in plan.axes)
    out = jnp.ones((1,) * (1 + 3 * n), bool)
    for i, axis in enumerate(plan.axes):
        seen = []
        for table in group_windows(axis):
            group, rows = np.int32(0), 1
            if len(table) > 1:  # a row a group of this axis -> a row a group of the map
                table = table.reshape(*(axis.dilation if j == i else 1 for j in range(n)), -1)
                table = np.broadcast_to(table, (*dilations, table.shape[-1])).reshape(-1, table.shape[-1])
                group, rows = origin[0], plan.groups
            part = (rows, axis.chunk * axis.tile)
            part = jax.lax.dynamic_slice(jnp.asarray(table, jnp.int32), (group, origin[1 + i]), part)
            seen.append(part.reshape(rows, axis.chunk, axis.tile, 1))
        tile = jnp.arange(axis.chunk)[:, None, None] * axis.tile
        key = origin[1 + i] + tile + jnp.arange(axis.halo) - axis.left
        sees = (seen[0] <= key) & (key < seen[1])  # [rows, chunk, tile, halo]
        shape = [len(sees), *(1,) * (3 * n)]
        shape[1 + i], shape[1 + n + i], shape[1 + 2 * n + i] = sees.shape[1:]
        out = out & sees.reshape(shape)
    C, Q, K = (math.prod(out.shape[1 + j * n : 1 + (j + 1) * n]) for j in range(3))
    return out.reshape(len(out), C, Q, K)


def halo_bias(bias, plan):
    """A table of relative positions [heads, 2k-1 an axis] -> what the keys of a halo get, [heads, Q, K].

    Relative positions are the same in every tile. By products with ones and zeros, so that the gradient adds up in a
    fixed order, in full precision.
    """
    n = len(plan.axes)
    for axis in plan.axes:
        query, key = np.arange(axis.tile)[:, None], np.arange(axis.halo)[None] - axis.left
        place = np.arange(2 * axis.kernel_size - 1) - (axis.kernel_size - 1)
        ones = jnp.asarray((key - query)[..., None] == place, bias.dtype)
        bias = jnp.tensordot(bias, ones, ((1,), (2,)), precision=jax.lax.Precision.HIGHEST)
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2))
    Q = math.prod(axis.tile for axis in plan.axes)
    return bias.transpose(order).reshape(len(bias), Q, -1)
