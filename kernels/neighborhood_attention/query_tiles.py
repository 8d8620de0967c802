"""How the TPU kernel cuts a map into grid steps: tiles of queries, each with the keys that their windows reach."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from vision_jax.kernels.limits import largest_divisor, vmem
from vision_jax.kernels.neighborhood_attention.fast_path import Call, beyond
from vision_jax.kernels.neighborhood_attention.windows import axis_windows
from vision_jax.kernels.packed_heads import LANES, MASKED

QUERIES = 128  # of a tile, at most: two of them at k = 7 take as many scores as registers hold
SUBLANES = 8  # rows of a register: where a block may begin along a map's columns
TEMPORARIES = 4  # arrays of one head's scores that are alive at once
SCORES = 2**15  # elements of one head's scores that are computed at once, for which small maps take several images


@dataclasses.dataclass(frozen=True)
class QueryTiles(Call):
    """The layout of a call."""

    @functools.cached_property
    def tile(self):
        """Queries of a tile, (rows, columns): all columns of a narrow map, so that no halo is cut off beside it."""
        height, width = self.size
        candidates = (16, 8) if height > 1 else (128, 64, 32, 16, 8)
        columns = next((n for n in candidates if width % n == 0 and width > 2 * n), width)
        return largest_divisor(height, QUERIES // columns), columns

    @functools.cached_property
    def axes(self):
        """For each axis where the keys of its tiles begin, how many they are, and which pattern they show."""
        settings = zip(self.size, self.tile, self.kernel_size, self.stride, self.is_causal, (1, SUBLANES), strict=True)
        return [_cut(*setting, self.border) for setting in settings]

    @property
    def keys(self):
        """Keys of a tile, (rows, columns)."""
        return tuple(axis.keys for axis in self.axes)

    @property
    def tiles(self):
        """Tiles of a map, (rows, columns)."""
        return tuple(n // m for n, m in zip(self.size, self.tile, strict=True))

    @functools.cached_property
    def step_images(self):
        """Images of a step: several of those that a single tile covers."""
        if self.tiles != (1, 1):
            return 1
        return largest_divisor(self.batch, SCORES // (math.prod(self.tile) * math.prod(self.keys)))

    @property
    def grid(self):
        """(blocks of lanes, steps over the batch, tiles): the keys' gradients are summed over a map's tiles."""
        return (self.heads.steps, self.batch // self.step_images, math.prod(self.tiles))

    @functools.cached_property
    def places(self):
        """int32 [tiles, 3]: the first row and the first group of 8 columns of a tile's keys, and its pattern."""
        rows, columns = self.axes
        return np.array(
            [
                (
                    rows.first[i],
                    columns.first[j] // SUBLANES,
                    rows.pattern[i] * len(columns.distance) + columns.pattern[j],
                )
                for i in range(self.tiles[0])
                for j in range(self.tiles[1])
            ],
            np.int32,
        )

    @property
    def patterns(self):
        """Different sights that tiles have, (along rows, along columns)."""
        return tuple(len(axis.distance) for axis in self.axes)

    def columns_table(self, bias):
        """Bias and mask along the columns, of which the kernel makes that of a whole tile.

        Args:
          bias: [heads, 2 * kernel_size - 1, ...] of both axes, or None.

        Returns:
          [column patterns, heads, 2 * kernel_size - 1 of the rows, columns of a tile, of its keys] float32; with no
          bias, one head and one row.
        """
        axis = self.axes[1]
        table = jnp.where(axis.distance >= 0, 0.0, MASKED)[:, None, None]
        if bias is None:
            return table
        select = jnp.asarray(axis.distance[..., None] == np.arange(2 * self.kernel_size[1] - 1), jnp.float32)
        exact = dict(precision="highest", preferred_element_type=jnp.float32)
        return table + jnp.einsum("hyx,pqkx->phyqk", bias.astype(jnp.float32), select, **exact)

    def row_of(self, pattern, query, key, biased):
        """Which row of `columns_table` is for a tile's row of queries and row of keys, or None where none is seen."""
        distance = int(self.axes[0].distance[pattern, query, key])
        return None if distance < 0 else distance * biased

    def vmem(self, biased, itemsize, backward):
        """Bytes that a step takes: blocks twice, because the next ones are fetched meanwhile, if there are others."""
        (Th, Tw), (Kh, Kw) = self.tile, self.keys
        heads = self.heads.in_step if biased else 1
        score = Th * Tw * _lanes(Kh * Kw) * 4
        table = math.prod(self.patterns) * heads * score
        columns = self.patterns[1] * heads * (2 * self.kernel_size[0] - 1) * Tw * _lanes(Kw) * 4
        blocks = self.step_images * self.heads.padded * itemsize * 2 * (Th * Tw + Kh * Kw)
        if backward:
            table, columns, blocks = 2 * table, 2 * columns, 2 * blocks
            blocks += 2 * self.step_images * math.prod(self.size) * self.heads.padded * 4
        columns *= 1 if self.heads.steps == 1 else 2
        return 2 * blocks + columns + table + TEMPORARIES * self.step_images * score


def _lanes(n):
    return -(-n // LANES) * LANES


def refusal(q, k, v, shape, options, biased, other):
    """Why the kernel does not take a call, or None where it does.

    Args:
      q, k, v: arrays or shapes.
      shape: q's on one device.
      options: as `Call.of` takes them.
      biased: whether there is a bias.
      other: names of what is used and only XLA has.
    """
    reason = beyond(q, k, v, shape, options, other)
    if reason:
        return reason
    tiles = QueryTiles.of(shape, options)
    if tiles.tile[1] > QUERIES:
        return f"a row of {tiles.size[1]} queries is too wide for one tile, and no multiple of 8 for more"
    if math.prod(tiles.tile) < 32 and math.prod(tiles.size) > 64:
        return f"tiles of {tiles.tile} queries of a map {tiles.size} leave the matrix unit empty"
    needed = tiles.vmem(biased, q.dtype.itemsize, backward=True)
    if needed > vmem():
        return f"the gradient's sums over a map of {tiles.size} take {needed / 2**20:.0f} MiB, more than VMEM has"
    return None


def to_groups(x, dilation):
    """[B, *sizes, heads, d] -> [B * groups, *places in a group, heads, d]; a map of one axis becomes a single row."""
    B, sizes, rest = len(x), x.shape[1:-2], x.shape[-2:]
    if any(d > 1 for d in dilation):
        x = x.reshape(B, *(m for n, d in zip(sizes, dilation, strict=True) for m in (n // d, d)), *rest)
        places, phases = range(1, 2 * len(sizes), 2), range(2, 2 * len(sizes) + 1, 2)
        x = x.transpose(0, *phases, *places, x.ndim - 2, x.ndim - 1)
    grouped = [n // d for n, d in zip(sizes, dilation, strict=True)]
    return x.reshape(-1, *(1,) * (2 - len(sizes)), *grouped, *rest)


def from_groups(x, dilation, sizes):
    """The inverse of `to_groups`."""
    rest, axes = x.shape[-2:], len(sizes)
    grouped = [n // d for n, d in zip(sizes, dilation, strict=True)]
    x = x.reshape(-1, *dilation, *grouped, *rest)
    order = [axis for n in range(axes) for axis in (1 + axes + n, 1 + n)]
    return x.transpose(0, *order, x.ndim - 2, x.ndim - 1).reshape(len(x), *sizes, *rest)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis cut into tiles.

    Attributes:
      keys: of each tile.
      first: [tiles], the first key.
      pattern: [tiles], which pattern is the tile's.
      distance: [patterns, queries, keys], a key's position less the query's, plus kernel_size - 1; -1: not seen.
    """

    keys: int
    first: np.ndarray
    pattern: np.ndarray
    distance: np.ndarray


@functools.cache
def _cut(size, tile, kernel_size, stride, is_causal, align, border):
    windows = axis_windows(size, kernel_size, stride, 1, is_causal, border)
    start, stop = (x.reshape(-1, tile) for x in (windows.start, windows.stop))
    align = align if tile < size else 1
    first = start.min(1) // align * align
    keys = min(-(-int((stop.max(1) - first).max()) // align) * align, size)
    first = np.minimum(first, size - keys)
    key = first[:, None, None] + np.arange(keys)
    seen = (key >= start[..., None]) & (key < stop[..., None])
    query = np.arange(size).reshape(-1, tile)
    distance = np.where(seen, key - query[..., None] + kernel_size - 1, -1)
    patterns, pattern = np.unique(distance, axis=0, return_inverse=True)
    return _Axis(keys, first, pattern.reshape(-1), patterns)
