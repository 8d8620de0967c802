"""The gradient of the bias on sm_90 GPUs: sums of the scores' gradients over all tiles of one pattern.

A block takes one head, one chunk of the rectangle and some tiles of one pattern, one after the other, and sums in
registers. What the blocks of a pattern found is summed outside, by a product with ones: in a fixed order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.mosaic_gpu import LOG2E, call, laid, product, tile
from vision_jax.kernels.neighborhood_attention import rectangles
from vision_jax.kernels.neighborhood_attention.gpu_blocks import (
    SLOTS,
    first_of_tile,
    flat,
    operand,
    rectangle,
    runs,
    scores_gradient,
    table_place,
)


def bias_gradient(layout, maps, numbers, *, bias, scale):
    """The gradient of `bias`.

    Args:
      layout: `rectangles.Rectangles`.
      maps: q, k, v and the gradient of the result, padded.
      numbers: of each query the log-sum-exp in bits, and what the output holds; [B, heads, tiles, 64] float32.
      bias: [heads, 2 * kernel_size - 1 of the rows, of the columns].
      scale: a number.
    """
    cut, heads, batch = layout.by_queries, layout.heads, len(maps[0])
    d, chunk, tiles = heads.head_dim, cut.chunk, len(cut.places)
    items, parts = _parts(cut, batch, heads.count)
    table, to_bias = jax.vjp(cut.table, bias)
    each = sum(1 for _ in runs(0, cut.tile, cut.padded[1])) + sum(1 for _ in _chunk_runs(cut, 0))
    scores = batch * heads.count * tiles * ROWS * cut.chunks * chunk
    found = call(
        functools.partial(_block, layout, scale),
        [jnp.asarray(cut.places), items, jnp.asarray(parts), *map(flat, maps), *numbers, table * LOG2E],
        out_type=[jax.ShapeDtypeStruct((len(parts) * heads.count * ROWS, cut.chunks * chunk), jnp.float32)],
        scratch=[
            [operand((SLOTS, n, d)) for n in (ROWS, chunk, chunk, ROWS)],
            [plgpu.SMEM((SLOTS, ROWS), jnp.float32)] * 2,
            tile((ROWS, chunk), jnp.float32),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=2 * each + 2, num_barriers=SLOTS),
        ],
        grid=(len(parts), heads.count, cut.chunks),
        names=("part", "head", "chunk"),
        cost=pl.CostEstimate(
            flops=2 * 2 * scores * d,
            transcendentals=scores,
            bytes_accessed=2 * 2 * d * (scores // ROWS + scores // chunk),
        ),
        name="neighborhood_attention_backward_bias",
    )[0]
    pattern_of = jnp.asarray(parts[:, 2:] == np.arange(cut.patterns), jnp.float32)
    d_table = jnp.einsum("np,nx->px", pattern_of, found.reshape(len(parts), -1), precision="highest")
    return to_bias(d_table.reshape(table.shape))[0]


def _parts(cut, batch, heads):
    """(int32 [B * tiles]: all tiles of all images, sorted by pattern; int32 [parts, 3]: where a part of them begins,
    how many they are, their pattern).
    """
    tiles = len(cut.places)
    pattern = np.tile(cut.places[:, 2], batch)
    size = -(-batch * tiles * heads * cut.chunks // rectangles.BLOCKS)
    parts, first = [], 0
    for n, count in enumerate(np.bincount(pattern, minlength=cut.patterns)):
        parts += [(first + i, min(size, count - i), n) for i in range(0, count, size)]
        first += count
    return jnp.asarray(np.argsort(pattern, kind="stable"), jnp.int32), np.array(parts, np.int32)


def _chunk_runs(cut, first):
    return runs(first, (cut.rows, cut.others[1]), cut.padded[1])


def _block(layout, scale, places, items, parts, q, k, v, d_out, lse, held, table, out, *scratch):
    cut, heads = layout.by_queries, layout.heads
    maps, numbers, added, ready, arrived = scratch
    part, head, chunk = (jax.lax.axis_index(name) for name in ("part", "head", "chunk"))
    begin, count = parts[part, 0], parts[part, 1]
    lanes = pl.ds(head * heads.head_dim, heads.head_dim)

    def fetch(i):
        slot, item = jax.lax.rem(i, SLOTS), items[begin + i]
        image, n = jax.lax.div(item, len(cut.places)), jax.lax.rem(item, len(cut.places))
        keys, _ = rectangle(cut, places, n, chunk)
        of_tile = list(runs(first_of_tile(cut, n), cut.tile, cut.padded[1]))
        of_keys = list(_chunk_runs(cut, keys))
        for source, target, found in zip((q, k, v, d_out), maps, (of_tile, of_keys, of_keys, of_tile), strict=True):
            for slots, tokens in found:
                plgpu.copy_gmem_to_smem(source.at[image, tokens, lanes], target.at[slot, slots], arrived.at[slot])
        for source, target in zip((lse, held), numbers, strict=True):
            plgpu.copy_gmem_to_smem(source.at[image, head, n], target.at[slot], arrived.at[slot])

    place = table_place(heads, parts[part, 2], head, chunk, cut.chunk)
    plgpu.copy_gmem_to_smem(table.at[place], added, ready)
    fetch(jnp.int32(0))
    pl.when(count > 1)(lambda: fetch(jnp.int32(1)))
    plgpu.barrier_wait(ready)

    def step(i, total):
        slot = jax.lax.rem(i, SLOTS)
        plgpu.barrier_wait(arrived.at[slot])
        queries, keys, values, d_results = (ref.at[slot] for ref in maps)
        of_query = [laid(ref[slot], 1) for ref in numbers]
        scores = product(queries, keys, (False, True)) * (scale * LOG2E) + laid(added[...])
        total = total + scores_gradient(scores, *of_query, d_results, values)
        plgpu.commit_smem()  # no thread reads this slot any more
        pl.when(i + SLOTS < count)(lambda: fetch(i + SLOTS))
        return total

    added[...] = jax.lax.fori_loop(0, count, step, laid(jnp.zeros((ROWS, cut.chunk), jnp.float32)))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(added, out.at[table_place(heads, part, head, chunk, cut.chunk)])
    plgpu.wait_smem_to_gmem(0)
