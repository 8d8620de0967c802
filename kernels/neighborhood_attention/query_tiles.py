"""How the TPU kernel cuts a map into grid steps: tiles of queries, each with the keys that their windows reach."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from vision_jax.kernels import tile_table
from vision_jax.kernels.limits import largest_divisor, smem, vmem
from vision_jax.kernels.neighborhood_attention import key_bands, tile_order
from vision_jax.kernels.neighborhood_attention.fast_path import Call, beyond
from vision_jax.kernels.neighborhood_attention.windows import axis_windows
from vision_jax.kernels.packed_heads import LANES, MASKED

QUERIES = 128  # of a tile, at most: two of them at k = 7 take as many scores as registers hold
SUBLANES = 8  # rows of a register: where a block may begin along a map's columns
TEMPORARIES = 4  # arrays of one head's scores that are alive at once
HELD = 48 * 2**20  # bytes of the backward pass's tables and sums, at most, where tables of all patterns are held
SCORES = 2**15  # elements of one head's scores that are computed at once, for which small maps take several images


@dataclasses.dataclass(frozen=True)
class QueryTiles(Call):
    """The layout of a call.

    Attributes:
      returns_lse: whether the log-sum-exp is a result.
      wide: whether the output is float32 whatever the operands are, for something to be added to it.
      tile: queries of a tile, (planes, rows, columns).
    """

    AXES = 3

    returns_lse: bool = False
    wide: bool = False
    tile: tuple = dataclasses.field(init=False)

    def __post_init__(self):
        call = self.size, self.kernel_size, self.heads.head_dim
        tile = tile_table.choose("neighborhood_attention.tpu", call, self._rule(), self._candidates)
        object.__setattr__(self, "tile", tile)

    def _rule(self):
        """All columns of a narrow map, so that no halo is cut off beside it; else what sees the fewest keys."""
        *others, width = self.size
        candidates = (16, 8) if math.prod(others) > 1 else (128, 64, 32, 16, 8)
        columns = next((n for n in candidates if width % n == 0 and width > 2 * n), width)

        def cost(tile):
            axes = zip(tile, others, self.kernel_size[:-1], strict=True)
            return math.prod(min(t + k - 1, n) / t for t, n, k in axes), -math.prod(tile)

        fitting = [tile for tile in self._divisors if math.prod(tile) <= max(QUERIES // columns, 1)]
        return (*min(fitting, key=cost), columns)

    @property
    def _divisors(self):
        """(planes, rows) that cut the map evenly."""
        return list(itertools.product(*([n for n in range(1, m + 1) if m % n == 0] for m in self.size[:-1])))

    def _candidates(self):
        """Tiles that fill the matrix unit's rows, a quarter at least and twice at most, and cut the map evenly."""
        width = self.size[-1]
        columns = [width, *(n for n in range(SUBLANES, width, SUBLANES) if width % n == 0)]
        tiles = [(*others, n) for others in self._divisors for n in columns]
        return [tile for tile in tiles if QUERIES // 4 <= math.prod(tile) <= 2 * QUERIES]

    @functools.cached_property
    def axes(self):
        """For each axis where the keys of its tiles begin, how many they are, and which pattern they show."""
        options = self.kernel_size, self.stride, self.is_causal, (1, 1, SUBLANES)
        return [_cut(*setting, self.border) for setting in zip(self.size, self.tile, *options, strict=True)]

    @property
    def key_size(self):
        """Positions of the keys' map along its axes: the map, and where zeros around it take part, these."""
        return tuple(axis.size for axis in self.axes)

    def with_zeros(self, x):
        """Keys or values of the map [B, *size, ...] -> those of the keys' map."""
        if self.key_size == self.size:
            return x
        pads = [(axis.pad, axis.size - axis.pad - n) for axis, n in zip(self.axes, self.size, strict=True)]
        return jnp.pad(x, ((0, 0), *pads, *((0, 0),) * (x.ndim - 1 - len(pads))))

    def without_zeros(self, x):
        """The inverse of `with_zeros`."""
        inner = (slice(axis.pad, axis.pad + n) for axis, n in zip(self.axes, self.size, strict=True))
        return x[(slice(None), *inner)]

    @property
    def keys(self):
        """Keys of a tile, (planes, rows, columns)."""
        return tuple(axis.keys for axis in self.axes)

    @property
    def rows_of_tile(self):
        """Rows of queries of a tile, in all its planes."""
        return math.prod(self.tile[:-1])

    @property
    def rows_of_keys(self):
        """Rows of its keys, in all their planes."""
        return math.prod(self.keys[:-1])

    @property
    def tiles(self):
        """Tiles of a map along its axes."""
        return tuple(n // m for n, m in zip(self.size, self.tile, strict=True))

    @functools.cached_property
    def step_images(self):
        """Images of a step: several of those that a single tile covers."""
        if math.prod(self.tiles) > 1:
            return 1
        return largest_divisor(self.batch, SCORES // (math.prod(self.tile) * math.prod(self.keys)))

    @property
    def grid(self):
        """(blocks of lanes, steps over the batch, tiles): the keys' gradients are summed over a map's tiles."""
        return (self.heads.steps, self.batch // self.step_images, math.prod(self.tiles))

    @functools.cached_property
    def bands(self):
        """(planes, rows, columns) of the parts in which the keys' gradients are summed."""
        return key_bands.choose(self.axes, self.key_size, self.step_images * self.heads.padded)

    def slots(self, biased):
        """Tables of bias and mask that are held at once: of all patterns where they fit, or that of the last tile."""
        every = math.prod(self.patterns)
        return every if 2 * every * self._table(biased) + self._sums <= HELD else 1

    def places(self, biased):
        """What the kernel may be told about each tile, {name of `tile_order.FIELDS`: int32 [tiles]}."""
        return tile_order.places(self.axes, self.bands, self.slots(biased), SUBLANES if self.tiles[-1] > 1 else 1)

    @property
    def rows_shape(self):
        """Of what has one number a query and head, a row of lanes each: [B, steps, tiles, heads, queries]."""
        return (self.batch, self.heads.steps, math.prod(self.tiles), self.heads.in_step, math.prod(self.tile))

    def from_rows(self, x):
        """`rows_shape` -> [B, *size, heads]."""
        x = x.reshape(self.batch, self.heads.steps, *self.tiles, self.heads.in_step, *self.tile)
        return x.transpose(0, 2, 6, 3, 7, 4, 8, 1, 5).reshape(self.batch, *self.size, self.heads.count)

    def to_rows(self, x):
        """The inverse of `from_rows`."""
        cut = itertools.chain(*zip(self.tiles, self.tile, strict=True))
        x = x.reshape(self.batch, *cut, self.heads.steps, self.heads.in_step)
        return x.transpose(0, 7, 1, 3, 5, 8, 2, 4, 6).reshape(self.rows_shape)

    @property
    def patterns(self):
        """Different sights that tiles have, along each axis."""
        return tuple(len(axis.distance) for axis in self.axes)

    def columns_table(self, bias):
        """Bias and mask along the columns, of which the kernel makes that of a whole tile.

        Args:
          bias: [heads, 2 * kernel_size - 1, ...] of all axes, or None.

        Returns:
          [column patterns, heads, rows, columns of a tile, of its keys] float32: a row for each distance of planes and
          rows, (2 * kernel_size - 1) of the planes times that of the rows; with no bias, one head and one row. Behind
          the rows is one more, of what is not seen.
        """
        axis = self.axes[-1]
        table = jnp.where(axis.distance >= 0, 0.0, MASKED)[:, None, None]
        if bias is not None:
            select = jnp.asarray(axis.distance[..., None] == np.arange(2 * self.kernel_size[-1] - 1), jnp.float32)
            exact = dict(precision="highest", preferred_element_type=jnp.float32)
            # XLA may else move the planes into the product, for whose gradient it then compiles a copy for a minute
            bias = jax.lax.optimization_barrier(bias.astype(jnp.float32).reshape(len(bias), -1, bias.shape[-1]))
            table = table + jnp.einsum("hyx,pqkx->phyqk", bias, select, **exact)
        return jnp.pad(table, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)), constant_values=MASKED)

    def rows_of(self, biased):
        """Which row of `columns_table` is for a tile's row of queries and row of keys.

        Returns:
          int32 [patterns of planes * of rows * rows of a tile, in all its planes * rows of its keys].
        """
        planes, rows = (axis.distance for axis in self.axes[:-1])
        planes, rows = planes[:, None, :, None, :, None], rows[:, None, :, None, :]
        distance = (planes * (2 * self.kernel_size[1] - 1) + rows) * biased
        unseen = (planes < 0) | (rows < 0)
        return np.where(unseen, self._unseen(biased), distance).astype(np.int32).reshape(-1)

    def _unseen(self, biased):
        """The row of `columns_table` of what is not seen."""
        return math.prod(2 * k - 1 for k in self.kernel_size[:-1]) if biased else 1

    def vmem(self, biased, itemsize, backward):
        """Bytes that a step takes: blocks twice, because the next ones are fetched meanwhile, if there are others."""
        heads = self.heads.in_step if biased else 1
        table = self.slots(biased) * self._table(biased)
        row = self.tile[-1] * _lanes(self.keys[-1]) * 4
        columns = self.patterns[-1] * heads * (self._unseen(biased) + 1) * row
        blocks = self.step_images * self.heads.padded * itemsize * 2 * (math.prod(self.tile) + math.prod(self.keys))
        if backward:
            table, columns, blocks = 2 * table, 2 * columns, 2 * blocks
        columns *= 1 if self.heads.steps == 1 else 2
        return 2 * blocks + backward * self._sums + columns + table + TEMPORARIES * self.step_images * self._score

    @property
    def smem(self):
        """Bytes of the numbers that the kernel is told about the tiles."""
        rows = self.patterns[0] * self.patterns[1] * self.rows_of_tile * self.rows_of_keys
        return 4 * (len(tile_order.FIELDS) * math.prod(self.tiles) + rows)

    @property
    def _sums(self):
        """Bytes of the keys' and values' gradients of a band."""
        return 4 * self.step_images * math.prod(bands.keys for bands in self.bands) * self.heads.padded * 4

    @property
    def _score(self):
        """Bytes of one head's scores of one image."""
        return math.prod(self.tile) * _lanes(math.prod(self.keys)) * 4

    def _table(self, biased):
        """Bytes of the table of one pair of patterns."""
        return self._score * (self.heads.in_step if biased else 1)


def _lanes(n):
    return -(-n // LANES) * LANES


def refusal(q, k, v, shape, options, biased):
    """Why the TPU kernel does not take a call, or None where it does.

    Args:
      q, k, v: arrays or shapes.
      shape: q's on one device.
      options: as `Call.of` takes them.
      biased: whether there is a bias.
    """
    reason = beyond(q, k, v, shape, options)
    if reason:
        return reason
    tiles = QueryTiles.of(shape, options)
    if tiles.tile[-1] > QUERIES:
        return f"a row of {tiles.size[-1]} queries is too wide for one tile, and no multiple of 8 for more"
    if math.prod(tiles.tile) < 32 and math.prod(tiles.size) > 64:
        return f"tiles of {tiles.tile} queries of maps of {tiles.size} leave the matrix unit empty"
    needed = tiles.vmem(biased, q.dtype.itemsize, backward=True)
    if needed > vmem():
        return f"the gradient of a tile of {tiles.tile} takes {needed / 2**20:.0f} MiB, more than VMEM has"
    if tiles.smem > smem():
        return f"the places of {math.prod(tiles.tiles):,} tiles take {tiles.smem / 2**20:.1f} MiB, more than SMEM has"
    return None


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis cut into tiles.

    Attributes:
      size: keys in all; pad: those of them that are zeros before the map.
      keys: of each tile.
      first: [tiles], the first key.
      pattern: [tiles], which pattern is the tile's.
      distance: [patterns, queries, keys], a key's position less the query's, plus kernel_size - 1; -1: not seen.
    """

    size: int
    pad: int
    keys: int
    first: np.ndarray
    pattern: np.ndarray
    distance: np.ndarray


@functools.cache
def _cut(size, tile, kernel_size, stride, is_causal, align, border):
    windows = axis_windows(size, kernel_size, stride, 1, is_causal, border)
    align = align if tile < size else 1
    pad = max(0, -int(windows.start.min()))
    start, stop = (x.reshape(-1, tile) + pad for x in (windows.start, windows.stop))
    query = np.arange(size).reshape(-1, tile) + pad
    size = max(size + pad, int(stop.max()))
    size = -(-size // align) * align
    first = start.min(1) // align * align
    keys = min(-(-int((stop.max(1) - first).max()) // align) * align, size)
    first = np.minimum(first, size - keys)
    key = first[:, None, None] + np.arange(keys)
    seen = (key >= start[..., None]) & (key < stop[..., None])
    distance = np.where(seen, key - query[..., None] + kernel_size - 1, -1)
    patterns, pattern = np.unique(distance, axis=0, return_inverse=True)
    return _Axis(size, pad, keys, first, pattern.reshape(-1), patterns)
