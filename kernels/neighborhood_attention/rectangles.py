"""How the GPU kernels cut a map: tiles of 64 tokens, each with the rectangle of tokens that it shares windows with."""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from vision_jax.kernels import hopper
from vision_jax.kernels.hopper import COLUMNS, MULTIPROCESSORS, ROWS, SMEM
from vision_jax.kernels.limits import unequal
from vision_jax.kernels.neighborhood_attention.fast_path import Call, beyond
from vision_jax.kernels.neighborhood_attention.windows import axis_windows
from vision_jax.kernels.packed_heads import MASKED

TILES = ((8, 8), (4, 16), (2, 32), (1, 64))  # rows and columns of a tile, of which the one with the fewest scores
STEP = 8  # tokens: where a copy to a tile of the tensor cores may begin, and what it takes whole
DEPTH = 32  # tokens: a product over those of a chunk takes whole multiples
CHUNK = {64: 128, 128: 64}  # head_dim up to -> tokens of a chunk at most, so that scores and sums stay in registers
STARTING = 16  # tokens: what a chunk costs beside them, guessed
PADDED = 1.25  # how much more a map that must be padded costs, for the copies, guessed
BLOCKS = 4 * MULTIPROCESSORS  # blocks that share the bias's gradient
TABLE = 2**27  # bytes that the table of a bias may take
OWN = 8_192  # bytes of shared memory that the compiler takes for itself, at most


class Axis(NamedTuple):
    """One axis of a `Cut`. A pattern is how the windows of a tile lie in its rectangle; all other numbers are theirs.

    Attributes:
      first: [tiles], where the rectangles begin; pattern: [tiles].
      offset: [patterns], the tile's first token, counted from the rectangle's.
      start, stop: [patterns, tokens of a tile]: a token shares windows with those at start <= place < stop of the
        rectangle.
    """

    first: np.ndarray
    pattern: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class Cut(NamedTuple):
    """A map in tiles of queries with the keys that they see, or of keys with the queries that see them.

    Attributes:
      of_queries: which of both.
      padded: the map's rows and columns in memory.
      tile: rows and columns of a tile; tiles: how many cover the map.
      others: rows and columns of a rectangle; rows: of a chunk of it, which is computed at once.
      axes: an `Axis` of the rows and one of the columns.
    """

    of_queries: bool
    padded: tuple
    tile: tuple
    tiles: tuple
    others: tuple
    rows: int
    axes: tuple

    @property
    def chunks(self):
        """Chunks of a rectangle."""
        return self.others[0] // self.rows

    @property
    def chunk(self):
        """Tokens of a chunk."""
        return self.rows * self.others[1]

    @property
    def patterns(self):
        """Number of patterns of whole tiles: of those along the rows times those along the columns."""
        return math.prod(len(axis.offset) for axis in self.axes)

    @property
    def places(self):
        """int32 [tiles, 3]: a rectangle's first row and first group of 8 columns, and the tile's pattern."""
        rows, columns = self.axes
        pattern = rows.pattern[:, None] * len(columns.offset) + columns.pattern
        found = np.broadcast_arrays(rows.first[:, None], columns.first // STEP, pattern)
        return np.stack(found, -1).reshape(-1, 3).astype(np.int32)

    def bounds(self):
        """float32 [patterns, 4, 64]: start and stop of each token of a tile along the rows, then along the columns."""
        rows, columns = self.axes
        shape = len(rows.offset), len(columns.offset), *self.tile
        found = [np.broadcast_to(x[:, None, :, None], shape) for x in (rows.start, rows.stop)]
        found += [np.broadcast_to(x[None, :, None, :], shape) for x in (columns.start, columns.stop)]
        return np.stack([x.reshape(-1, ROWS) for x in found], 1).astype(np.float32)

    def coordinates(self):
        """float32 [2, tokens of a chunk]: their rows, counted from the chunk's first, and columns."""
        return np.indices((self.rows, self.others[1])).reshape(2, -1).astype(np.float32)

    def table(self, bias):
        """Bias and mask, float32 [patterns * heads * 64, tokens of a rectangle]; `MASKED`: a pair shares no window.

        By products with ones and zeros, whose transposes sum in a fixed order, as no scatter on a GPU does.

        Args:
          bias: [heads, 2 * kernel_size - 1 of the rows, of the columns].
        """
        ones, seen = [], []
        for axis, tile, count, relative in zip(self.axes, self.tile, self.others, bias.shape[1:], strict=True):
            other, own = np.arange(count), (axis.offset[:, None] + np.arange(tile))[..., None]
            distance = (other - own if self.of_queries else own - other) + relative // 2
            one = jnp.asarray(distance)[..., None] == np.arange(relative)
            seen.append((other >= axis.start[..., None]) & (other < axis.stop[..., None]))
            ones.append((one & seen[-1][..., None]).astype(jnp.float32))
        table = jnp.einsum("hab,yQKa,xqkb->yxhQqKk", bias.astype(jnp.float32), *ones, precision="highest")
        seen = seen[0][:, None, None, :, None, :, None] & seen[1][None, :, None, None, :, None, :]
        return jnp.where(seen, table, MASKED).reshape(-1, math.prod(self.others))


@dataclasses.dataclass(frozen=True)
class Rectangles(Call):
    """The layout of a call: its maps cut by queries, for the result and their gradient, and by keys, for theirs."""

    AXES = 2

    @functools.cached_property
    def _windows(self):
        """((start, stop) of the keys of each query, (start, stop) of the queries of each key), an axis."""
        out = []
        for size, *options in zip(self.size, self.kernel_size, self.stride, self.is_causal, strict=True):
            windows = axis_windows(size, *options[:2], 1, options[2], self.border)
            place = np.arange(size)
            start = np.searchsorted(windows.stop, place, side="right")
            stop = np.maximum(np.searchsorted(windows.start, place, side="right"), start)
            out.append(((windows.start, windows.stop), (start, stop)))
        return out

    @functools.cached_property
    def _plans(self):
        """(tile, others, rows) of both cuts, or None where there is none."""
        by_queries = self._plan(0, 0)
        return by_queries and (by_queries, self._plan(1, max(by_queries[1][1], _up(self.size[1], by_queries[0][1]))))

    def _plan(self, by_keys, width):
        """(tile, others, rows) with the fewest scores; by keys, of a map whose rows have at least this many tokens."""
        best = None
        most = next((n for dim, n in CHUNK.items() if self.heads.head_dim <= dim), min(CHUNK.values()))
        for tile in TILES:
            height, across = (
                _extent(*axis[by_keys], n, align) for axis, n, align in zip(self._windows, tile, (1, STEP), strict=True)
            )
            covered = [_up(n, m) for n, m in zip(self.size, tile, strict=True)]
            whole = max(width, covered[1])
            # By keys there is a number a token to copy besides, to multiples of 128 bytes: 32 tokens, or all of a row.
            widths = {_up(across, step) for step in ((DEPTH,) if by_keys else (STEP, 2 * STEP, DEPTH))}
            widths |= {whole} if by_keys and across <= whole else set()
            for columns, rows in itertools.product(widths, range(1, most // STEP + 1)):
                fits = rows * columns <= most or (rows == 1 and columns <= COLUMNS)
                if not fits or rows * columns % DEPTH:
                    continue
                others = _up(height, rows), columns
                padded = any(max(o, c) > n for o, c, n in zip(others, covered, self.size, strict=True))
                scores = math.prod(covered) * math.prod(others) * (PADDED if padded else 1)
                cost = scores * (1 + STARTING / (rows * columns))
                best = min(filter(None, (best, (cost, tile, others, rows))))
        return best and best[1:]

    @functools.cached_property
    def padded(self):
        """Rows and columns of the maps in memory: of whole tiles, and at least a rectangle."""
        found = []
        for axis, step in ((0, 1), (1, STEP)):
            needs = [max(_up(self.size[axis], tile[axis]), others[axis]) for tile, others, _ in self._plans]
            found.append(_up(max(needs), step))
        return tuple(found)

    @functools.cached_property
    def by_queries(self):
        """The `Cut` for what is computed query by query."""
        return self._cut(0)

    @functools.cached_property
    def by_keys(self):
        """The `Cut` for what is computed key by key."""
        return self._cut(1)

    def _cut(self, by_keys):
        tile, others, rows = self._plans[by_keys]
        settings = zip(self._windows, tile, others, self.padded, (1, STEP), strict=True)
        axes = tuple(_axis(*windows[by_keys], *setting, by_keys) for windows, *setting in settings)
        tiles = tuple(len(axis.first) for axis in axes)
        return Cut(not by_keys, self.padded, tile, tiles, others, rows, axes)

    def shared_memory(self, biased):
        """Bytes of shared memory that a block of the kernels takes, at most."""
        d, most = self.heads.head_dim, 0
        for cut in (self.by_queries, self.by_keys):
            maps = 2 * d * (2 * ROWS + 4 * cut.chunk)
            most = max(most, maps + 4 * (8 * ROWS + 6 * cut.chunk) + biased * 2 * 4 * ROWS * cut.chunk)
        of_bias = biased * (2 * 2 * 2 * d * (ROWS + self.by_queries.chunk) + 4 * ROWS * (self.by_queries.chunk + 4))
        return max(most, of_bias) + OWN


def refusal(q, k, v, shape, options, biased, additional):
    """Why the GPU kernels do not take a call, or None where they do.

    Args:
      q, k, v, shape, options, biased: as `query_tiles.refusal` takes them.
      additional: whether there are additional keys.
    """
    if additional:
        return "additional_keys: not by the GPU kernels"
    if options["border"] == "zero":
        return "border='zero': not by the GPU kernels"
    if len(shape) - 3 > Rectangles.AXES:
        return "maps of three axes: not by the GPU kernels"
    reason = beyond(q, k, v, shape, options) or unequal(q, k, v) or hopper.refusal(q)
    if reason:
        return reason
    layout = Rectangles.of(shape, options)
    if not layout._plans or not layout._plans[1]:
        return f"64 queries with kernel_size={options['kernel_size']} see more than {COLUMNS} columns"
    needed = layout.shared_memory(biased)
    if needed > SMEM:
        return f"tiles of {layout.heads.head_dim} channels need {needed} bytes of shared memory of {SMEM}"
    for cut in (layout.by_queries, layout.by_keys):
        table = cut.patterns * layout.heads.count * ROWS * math.prod(cut.others) * 4
        if biased and table > TABLE:
            return f"the table of the bias would take {table / 2**20:.0f} MiB, more than {TABLE / 2**20:.0f}"
    return None


def _up(n, step):
    return -(-n // step) * step


def _beyond(start, stop, tile, by_keys=False):
    """start and stop in rows of whole tiles. Beyond the end, queries see what the last one does, keys are not seen."""
    more = -len(start) % tile
    last = start[-1] if by_keys else stop[-1]
    start, stop = (np.append(x, np.full(more, n)) for x, n in ((start, start[-1]), (stop, last)))
    return start.reshape(-1, tile), stop.reshape(-1, tile)


def _extent(start, stop, tile, align):
    """Places of a rectangle of this axis: what a tile's windows reach, from a multiple of `align` on."""
    start, stop = _beyond(start, stop, tile)
    return int((stop.max(1) - start.min(1) // align * align).max())


def _axis(start, stop, tile, count, padded, align, by_keys):
    start, stop = _beyond(start, stop, tile, by_keys)
    first = np.minimum(start.min(1) // align * align, padded - count)
    own = np.arange(len(start)) * tile
    sights = np.concatenate([(own - first)[:, None], start - first[:, None], stop - first[:, None]], 1)
    sights, pattern = np.unique(sights, axis=0, return_inverse=True)
    return Axis(first, pattern.reshape(-1), sights[:, 0], sights[:, 1 : 1 + tile], sights[:, 1 + tile :])
