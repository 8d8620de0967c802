"""A block of the GPU kernels: a tile of 64 tokens against the rectangle of tokens that it shares windows with.

A block takes one tile of one head of one image. The rectangle comes chunk by chunk, whole rows of it, straight from
the map into the tiles that the tensor cores read; two chunks are on their way or in use at a time. Scores stay in
registers. Where there is no bias, which pairs share a window is compared from a few numbers a token; else a table tells
both, of which there is one for every sight that a tile can have: inside the map, at its borders, in its corners.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.mosaic_gpu import LOG2E, call, columns, laid, product, rows, tile
from vision_jax.kernels.neighborhood_attention.rectangles import DEPTH, STEP
from vision_jax.kernels.packed_heads import MASKED

SLOTS = 2  # chunks in shared memory


class Update(NamedTuple):
    """What a kernel does with its scores.

    Attributes:
      start: the sums, before the first chunk.
      step: (scores [64, tokens of a chunk] in bits, `MASKED` where no window is shared; the tile's maps and numbers;
        the chunk's; sums) -> sums.
      finish: sums -> (results of the tile, [64, head_dim] each; its numbers, [64] each).
      results: maps and numbers that it gives.
    """

    start: callable
    step: callable
    finish: callable
    results: tuple


def attend(cut, heads, update, own, others, own_numbers=(), other_numbers=(), *, bias, scale, products, name):
    """Runs `update` for every tile: (maps as `own`, numbers as `own_numbers`), lists.

    Args:
      cut: a `rectangles.Cut`.
      heads: a `packed_heads.Heads`.
      update: an `Update`.
      own, others: maps [B, *padded, heads, head_dim] bfloat16, of which tiles and rectangles are read; scores are of
        the first ones.
      own_numbers: [B, heads, tiles, 64] float32.
      other_numbers: [B, heads, tokens of a padded map] float32.
      bias: as the public function's, or None.
      scale: a number.
      products: of matrices in a step; name: the kernel's. Both for its cost and profiles.
    """
    B, (H, W), (d, chunk) = len(own[0]), cut.padded, (heads.head_dim, cut.chunk)
    maps = [flat(x) for x in (*own, *others)]
    guides = (
        [cut.table(bias) * LOG2E] if bias is not None else [jnp.asarray(cut.bounds()), jnp.asarray(cut.coordinates())]
    )
    operands = [jnp.asarray(cut.places), *maps, *own_numbers, *other_numbers, *guides]
    of_maps, of_numbers = update.results
    out_type = [jax.ShapeDtypeStruct(maps[0].shape, jnp.bfloat16)] * of_maps
    out_type += [jax.ShapeDtypeStruct((B, heads.count, math.prod(cut.tiles), ROWS), jnp.float32)] * of_numbers
    guide = [[plgpu.SMEM((ROWS,), jnp.float32)] * 4, [plgpu.SMEM((chunk,), jnp.float32)] * 2]
    if bias is not None:
        guide = [[tile((SLOTS, ROWS, chunk), jnp.float32)], []]
    at_first = len(own) * _copies(cut.tile, W) + len(own_numbers) + (6 if bias is None else 0)
    of_chunk = (cut.rows, cut.others[1])
    each = (len(others) + len(other_numbers)) * _copies(of_chunk, W) + (bias is not None)
    scores = B * heads.count * math.prod(cut.tiles) * ROWS * math.prod(cut.others)
    out = call(
        functools.partial(
            _block, cut, heads, update, scale, (len(own), len(others), len(own_numbers)), bias is not None
        ),
        operands,
        out_type=out_type,
        scratch=[
            [operand((ROWS, d)) for _ in own],
            [operand((SLOTS, chunk, d)) for _ in others],
            [plgpu.SMEM((ROWS,), jnp.float32) for _ in own_numbers],
            [plgpu.SMEM((SLOTS, chunk), jnp.float32) for _ in other_numbers],
            guide,
            [plgpu.SMEM((ROWS,), jnp.float32)] * of_numbers,
            plgpu.Barrier(num_arrivals=at_first),
            plgpu.Barrier(num_arrivals=each, num_barriers=SLOTS),
        ],
        grid=(B, heads.count, math.prod(cut.tiles)),
        names=("image", "head", "tile"),
        cost=pl.CostEstimate(
            flops=products * 2 * scores * d,
            transcendentals=scores,
            bytes_accessed=2 * d * (scores // ROWS * len(others) + B * H * W * heads.count * (len(own) + of_maps)),
        ),
        name=name,
    )
    found = [x.reshape(own[0].shape) for x in out[:of_maps]]
    return found, list(out[of_maps:])


def operand(shape):
    """Shared memory for maps [..., tokens, channels], ordered so that products may also run over 32 tokens."""
    return tile(shape, columns=math.gcd(shape[-1], DEPTH))


def flat(x):
    """[B, H, W, heads, d] -> [B, H W, C]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)


def runs(first, shape, width):
    """The runs of neighbouring tokens that make up a rectangle: (slots in shared memory, tokens of the map), slices.

    Args:
      first: the first token; a multiple of 8, and traced so that this can be seen.
      shape: rows and columns of the rectangle.
      width: columns of the map.
    """
    rows, columns = shape
    rows, columns = (1, rows * columns) if columns == width else shape
    for row in range(rows):
        yield pl.ds(row * columns, columns), pl.ds(first + row * width, columns)


def _copies(shape, width):
    return sum(1 for _ in runs(0, shape, width))


def rectangle(cut, places, n, chunk):
    """(first token of a chunk of tile n's rectangle, the tile's pattern)."""
    row = places[n, 0] + chunk * cut.rows
    return row * cut.padded[1] + places[n, 1] * STEP, places[n, 2]


def first_of_tile(cut, n):
    """The first token of tile n."""
    (h, w), across = cut.tile, cut.tiles[1]
    return jax.lax.div(n, across) * (h * cut.padded[1]) + jax.lax.rem(n, across) * w


def table_place(heads, pattern, head, chunk, size):
    """Where a chunk's part of the table lies."""
    return pl.ds((pattern * heads.count + head) * ROWS, ROWS), pl.ds(chunk * size, size)


def scores_gradient(scores, lse, held, d_out, v):
    """That of 64 queries' scores [64, tokens]; their log-sum-exp and what the output holds [64], d_out and v tiles."""
    p = jnp.exp2(scores - rows(lse, scores.shape[1]))
    return p * (product(d_out, v, (False, True)) - rows(held, scores.shape[1]))


def _block(cut, heads, update, scale, counts, biased, *refs):
    places, refs = refs[0], list(refs[1:])
    own_tiles, other_tiles, own_numbers, other_numbers, guide, leaving, ready, arrived = refs[-8:]
    refs = refs[:-8]

    def take(n):
        return [refs.pop(0) for _ in range(n)]

    own, others, of_own = map(take, counts)
    of_others, guides = take(len(other_numbers)), take(1 if biased else 2)
    targets = refs
    image, head, n = (jax.lax.axis_index(name) for name in ("image", "head", "tile"))
    lanes, width = pl.ds(head * heads.head_dim, heads.head_dim), cut.padded[1]
    bounds, coordinates = guide

    def fetch(chunk):
        slot = jax.lax.rem(chunk, SLOTS)
        first, pattern = rectangle(cut, places, n, chunk)
        for slots, tokens in runs(first, (cut.rows, cut.others[1]), width):
            for source, target in zip(others, other_tiles, strict=True):
                plgpu.copy_gmem_to_smem(source.at[image, tokens, lanes], target.at[slot, slots], arrived.at[slot])
            for source, target in zip(of_others, other_numbers, strict=True):
                plgpu.copy_gmem_to_smem(source.at[image, head, tokens], target.at[slot, slots], arrived.at[slot])
        if biased:
            place = table_place(heads, pattern, head, chunk, cut.chunk)
            plgpu.copy_gmem_to_smem(guides[0].at[place], bounds[0].at[slot], arrived.at[slot])

    _, pattern = rectangle(cut, places, n, 0)
    first = first_of_tile(cut, n)
    for slots, tokens in runs(first, cut.tile, width):
        for source, target in zip(own, own_tiles, strict=True):
            plgpu.copy_gmem_to_smem(source.at[image, tokens, lanes], target.at[slots], ready)
    for source, target in zip(of_own, own_numbers, strict=True):
        plgpu.copy_gmem_to_smem(source.at[image, head, n], target, ready)
    if not biased:
        for i, target in enumerate(bounds):
            plgpu.copy_gmem_to_smem(guides[0].at[pattern, i], target, ready)
        for i, target in enumerate(coordinates):
            plgpu.copy_gmem_to_smem(guides[1].at[i], target, ready)
    for chunk in range(min(SLOTS, cut.chunks)):
        fetch(jnp.int32(chunk))
    plgpu.barrier_wait(ready)
    numbers = [laid(ref[...], 1) for ref in own_numbers]

    def shared(chunk):
        """Whether a pair shares a window."""
        row, column = (columns(laid(ref[...], 0), ROWS) for ref in coordinates)
        row_start, row_stop, start, stop = (rows(laid(ref[...], 1), cut.chunk) for ref in bounds)
        row = row + (chunk * cut.rows).astype(jnp.float32)
        return (row >= row_start) & (row < row_stop) & (column >= start) & (column < stop)

    def step(chunk, sums):
        slot = jax.lax.rem(chunk, SLOTS)
        plgpu.barrier_wait(arrived.at[slot])
        tiles = [ref.at[slot] for ref in other_tiles]
        scores = product(own_tiles[0], tiles[0], (False, True)) * (scale * LOG2E)
        scores = scores + laid(bounds[0][slot]) if biased else jnp.where(shared(chunk), scores, MASKED)
        theirs = [laid(ref[slot], 0) for ref in other_numbers]
        sums = update.step(scores, (own_tiles, numbers), (tiles, theirs), sums)
        plgpu.commit_smem()  # no thread reads this slot any more
        pl.when(chunk + SLOTS < cut.chunks)(lambda: fetch(chunk + SLOTS))
        return sums

    sums = jax.lax.fori_loop(0, cut.chunks, step, update.start())
    maps, of_tile = update.finish(sums)
    for result, ref in zip((*maps, *of_tile), (*own_tiles[: len(maps)], *leaving), strict=True):
        ref[...] = result.astype(ref.dtype)
    plgpu.commit_smem()
    for slots, tokens in runs(first, cut.tile, width):
        for ref, target in zip(own_tiles, targets[: len(maps)], strict=False):
            plgpu.copy_smem_to_gmem(ref.at[slots], target.at[image, tokens, lanes])
    for ref, target in zip(leaving, targets[len(maps) :], strict=True):
        plgpu.copy_smem_to_gmem(ref, target.at[image, head, n])
    plgpu.wait_smem_to_gmem(0)
