"""A block of the GPU kernels: goes through tiles of 64 tokens of one pack of heads, one after the other.

The tiles come straight from the tokens [B, N, C] to where the tensor cores read; two are on their way or in use at a
time. What all tiles share lies in shared memory for as long as the block lives, what is summed over them in registers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.mosaic_gpu import call, laid, tile

SLOTS = 2  # tiles of a tensor in shared memory


class Update(NamedTuple):
    """What a kernel does with a tile.

    Attributes:
      step: (the tensors' tiles, the tables, the numbers [64], a spare tile bfloat16, sums) -> (results [64 tokens, 64
        channels], sums [64, 64] float32), both lists.
      results: how many; sums: how many.
    """

    step: callable
    results: int
    sums: int


def over_tokens(layout, update, tensors, tables=(), numbers=(), *, products, name):
    """Runs `update` over all tiles: (results as `tensors`, sums [B, packs, 64, 64] float32), lists.

    Args:
      layout: a `head_packs.HeadPacks`.
      update: an `Update`.
      tensors: [B, N, heads, head_dim] bfloat16.
      tables: [B or 1, packs, 64, 64] bfloat16.
      numbers: [B, packs, 64] float32.
      products: of matrices in a step; name: the kernel's. Both for its cost and profiles.
    """
    B, N, heads, d = tensors[0].shape
    packs, parts = layout.packs, layout.parts
    more = layout.tiles * ROWS - N
    flat = [jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x for x in tensors]
    flat = [x.reshape(B, N + more, heads * d) for x in flat]
    out_type = [jax.ShapeDtypeStruct(flat[0].shape, jnp.bfloat16)] * update.results
    out_type += [jax.ShapeDtypeStruct((B * parts * packs * ROWS, ROWS), jnp.float32)] * update.sums
    out = call(
        functools.partial(_block, layout, update, (len(tensors), len(tables), len(numbers))),
        [*flat, *tables, *numbers],
        out_type=out_type,
        scratch=[
            [tile((SLOTS, ROWS, ROWS)) for _ in tensors],
            [tile((ROWS, ROWS)) for _ in tables],
            [plgpu.SMEM((ROWS,), jnp.float32) for _ in numbers],
            tile((ROWS, ROWS)),
            [tile((ROWS, ROWS)) for _ in range(update.results)],
            [tile((ROWS, ROWS), jnp.float32)] * (update.sums > 0),
            plgpu.Barrier(num_arrivals=max(1, len(tables) + len(numbers))),
            plgpu.Barrier(num_arrivals=len(tensors), num_barriers=SLOTS),
        ],
        grid=(B, packs, parts),
        names=("image", "pack", "part"),
        cost=pl.CostEstimate(
            flops=2 * products * flat[0].size * ROWS,
            transcendentals=0,
            bytes_accessed=2 * flat[0].size * (len(tensors) + update.results)
            + B * packs * parts * ROWS * ROWS * (2 * len(tables) + 4 * update.sums),
        ),
        name=name,
    )
    results = [x.reshape(B, -1, heads, d)[:, :N] for x in out[: update.results]]
    return results, [x.reshape(B, parts, packs, ROWS, ROWS).sum(1) for x in out[update.results :]]


def _block(layout, update, counts, *refs):
    arriving, shared, lanes_of, spare, leaving, staging, ready, arrived = refs[-8:]
    refs = list(refs[:-8])

    def take(n):
        return [refs.pop(0) for _ in range(n)]

    tensors, tables, numbers = map(take, counts)
    results, totals = take(update.results), take(update.sums)
    image, pack, part = (jax.lax.axis_index(name) for name in ("image", "pack", "part"))
    count = jax.lax.div(layout.tiles - part + layout.parts - 1, layout.parts)
    channels = pl.ds(pack * ROWS, ROWS)

    def place(n):
        return image, pl.ds((part + n * layout.parts) * ROWS, ROWS), channels

    def fetch(n):
        slot = jax.lax.rem(n, SLOTS)
        for source, target in zip(tensors, arriving, strict=True):
            plgpu.copy_gmem_to_smem(source.at[place(n)], target.at[slot], arrived.at[slot])

    for source, target in zip(tables, shared, strict=True):
        of_image = image if source.shape[0] > 1 else 0
        plgpu.copy_gmem_to_smem(source.at[of_image, pack], target, ready)
    for source, target in zip(numbers, lanes_of, strict=True):
        plgpu.copy_gmem_to_smem(source.at[image, pack], target, ready)
    fetch(jnp.int32(0))
    pl.when(count > 1)(lambda: fetch(jnp.int32(1)))
    if tables or numbers:
        plgpu.barrier_wait(ready)
    of_lanes = [laid(ref[...], 0) for ref in lanes_of]

    def step(n, sums):
        slot = jax.lax.rem(n, SLOTS)
        plgpu.barrier_wait(arrived.at[slot])
        found, sums = update.step([ref.at[slot] for ref in arriving], shared, of_lanes, spare, list(sums))
        if leaving:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for x, ref in zip(found, leaving, strict=True):
            ref[...] = x.astype(jnp.bfloat16)
        plgpu.commit_smem()  # no thread reads this slot any more
        for ref, target in zip(leaving, results, strict=True):
            plgpu.copy_smem_to_gmem(ref, target.at[place(n)])
        pl.when(n + SLOTS < count)(lambda: fetch(n + SLOTS))
        return tuple(sums)

    none = laid(jnp.zeros((ROWS, ROWS), jnp.float32))
    sums = jax.lax.fori_loop(0, count, step, (none,) * update.sums)
    row = ((image * layout.parts + part) * layout.packs + pack) * ROWS
    for total, target in zip(sums, totals, strict=True):
        staging[0][...] = total
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staging[0], target.at[pl.ds(row, ROWS)])
        plgpu.wait_smem_to_gmem(0)
    plgpu.wait_smem_to_gmem(0)
