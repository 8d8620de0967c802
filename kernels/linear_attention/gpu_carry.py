"""A block of the causal GPU kernels: goes through tiles of 64 tokens of one pack of heads and carries a state along.

The state stays in registers; each head reads its own part of it from shared memory, in two halves of bfloat16. What
several heads' keys and values make of each other lies beside, and nobody reads it. Two tiles of tokens are on their way
or in use at a time.

Decays enter as sums of logarithms, from a tile's begin and to its end, in bits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.linear_attention.gpu_halves import rounded_halves, wide
from vision_jax.kernels.mosaic_gpu import call, laid, product, rows, tile

SLOTS = 2  # tiles of a tensor in shared memory


class Update(NamedTuple):
    """What a kernel does with a tile.

    Attributes:
      step: for one head, (the tensors' tiles [64, head_dim], the states' halves [head_dim, head_dim]: two of the one
        that is carried, then those that are given, its `Decays`) -> (results [64, head_dim], numbers [64]), lists.
      results: how many; numbers: how many.
      taken: which two tensors the state takes in: the first one's transpose, decayed, times the second.
      backward: whether tiles are taken from the last to the first. States before each tile are then given, and the sum
        of both states' product over the values' channels, as it passes the tile, follows the heads' numbers.
    """

    step: callable
    results: int
    numbers: int
    taken: tuple
    backward: bool


class Decays(NamedTuple):
    """Places in shared memory of 64 sums each, float32.

    Attributes:
      since: of a token and those before it in its tile.
      again: the same; one load lies either along rows or along columns of pairs.
      until: of those after it.
    """

    since: object
    again: object
    until: object


def over_tiles(layout, update, tensors, decay, state, given=(), *, keeps, name):
    """Takes a state through all tiles.

    Args:
      layout: a `head_packs.HeadPacks`.
      update: an `Update`.
      tensors: [B, tiles * 64, channels] bfloat16.
      decay: [B or 1, heads, tiles, 64], in bits.
      state: [B * packs * 64, 64] float32, heads on the diagonal.
      given: two halves of states, [B * packs * tiles * 64, 64] bfloat16; such are kept, too.
      keeps: whether states before each tile are results.
      name: the kernel's, in profiles.

    Returns:
      (results as `tensors`, a list; the last state; states before each tile, a list that is empty where none is kept;
      the numbers, a list of none or of one array [B, packs, tiles, update.numbers * heads of a pack + 1, 64]).
    """
    B, T, C = tensors[0].shape
    n, d = layout.per_pack, layout.heads.head_dim
    since = jnp.cumsum(decay, -1).reshape(-1, layout.packs, n, layout.tiles, ROWS).transpose(0, 1, 3, 2, 4)
    passing = jnp.repeat(jnp.exp2(since[..., -1]), d, -1)[..., None, :]
    decays = jnp.concatenate([since, since[..., -1:] - since, passing], 3)
    count = n * update.numbers + 1 if update.numbers else 0
    of_states = jax.ShapeDtypeStruct((B * layout.packs * layout.tiles * ROWS, ROWS), jnp.bfloat16)
    of_numbers = jax.ShapeDtypeStruct((B, layout.packs, layout.tiles, count, ROWS), jnp.float32)
    counts = (len(tensors), 1, 1, len(given), update.results, 1, 2 * keeps, min(count, 1))
    tokens = functools.partial(tile, (SLOTS, ROWS, ROWS), columns=d)
    one = functools.partial(tile, (ROWS, ROWS), columns=d)
    found = call(
        functools.partial(_block, layout, update, counts),
        [*tensors, decays, state, *given],
        out_type=[jax.ShapeDtypeStruct((B, T, C), jnp.bfloat16)] * update.results
        + [jax.ShapeDtypeStruct(state.shape, jnp.float32)]
        + [of_states] * 2 * keeps
        + [of_numbers] * min(count, 1),
        scratch=[
            [tokens() for _ in tensors],
            [tokens() for _ in given],
            plgpu.SMEM((SLOTS, 2 * n + 1, ROWS), jnp.float32),
            plgpu.SMEM((SLOTS, n, ROWS), jnp.float32),
            tile((ROWS, ROWS), jnp.float32),
            [one() for _ in range(2)],
            one(),
            [one() for _ in range(update.results)],
            [plgpu.SMEM((count, ROWS), jnp.float32)] * min(count, 1),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=len(tensors) + len(given) + 2, num_barriers=SLOTS),
        ],
        grid=(B, layout.packs),
        names=("image", "pack"),
        cost=pl.CostEstimate(
            flops=2 * B * T * C * (8 * ROWS + 6 * d if update.backward else 3 * ROWS + 2 * d),
            transcendentals=B * T * layout.heads.count * ROWS * (2 if update.backward else 1),
            bytes_accessed=2 * B * T * C * (len(tensors) + update.results + 2 * keeps + len(given))
            + 8 * state.size
            + 4 * B * decays[0].size,
        ),
        name=name,
    )
    results, (last, *rest) = found[: update.results], found[update.results :]
    return results, last, rest[: 2 * keeps], rest[2 * keeps :]


def _block(layout, update, counts, *refs):
    arriving, halves_given, decays, again, carried, halves, taking, leaving, numbers, ready, arrived = refs[-11:]
    refs = list(refs[:-11])
    sources, (decay,), (first,), given, results, (last,), keeping, of_numbers = (
        [refs.pop(0) for _ in range(count)] for count in counts
    )
    image, pack = jax.lax.axis_index("image"), jax.lax.axis_index("pack")
    n, d = layout.per_pack, layout.heads.head_dim
    block = image * layout.packs + pack

    def at(step):
        return layout.tiles - 1 - step if update.backward else step

    def tokens(step):
        return image, pl.ds(at(step) * ROWS, ROWS), pl.ds(pack * ROWS, ROWS)

    def states(step):
        return pl.ds((block * layout.tiles + at(step)) * ROWS, ROWS)

    def fetch(step):
        slot = jax.lax.rem(step, SLOTS)
        for source, target in zip(sources, arriving, strict=True):
            plgpu.copy_gmem_to_smem(source.at[tokens(step)], target.at[slot], arrived.at[slot])
        for source, target in zip(given, halves_given, strict=True):
            plgpu.copy_gmem_to_smem(source.at[states(step)], target.at[slot], arrived.at[slot])
        source = decay.at[image if decay.shape[0] > 1 else 0, pack, at(step)]
        plgpu.copy_gmem_to_smem(source, decays.at[slot], arrived.at[slot])
        plgpu.copy_gmem_to_smem(source.at[pl.ds(0, n)], again.at[slot], arrived.at[slot])

    plgpu.copy_gmem_to_smem(first.at[pl.ds(block * ROWS, ROWS)], carried, ready)
    fetch(jnp.int32(0))
    if layout.tiles > 1:
        fetch(jnp.int32(1))
    plgpu.barrier_wait(ready)

    def run(step, state):
        slot = jax.lax.rem(step, SLOTS)
        plgpu.barrier_wait(arrived.at[slot])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for half, ref in zip(rounded_halves(state), halves, strict=True):
            ref[...] = half
        tiles = [ref.at[slot] for ref in arriving]
        states_given = [ref.at[slot] for ref in halves_given]
        of_heads = [Decays(decays.at[slot, head], again.at[slot, head], decays.at[slot, n + head]) for head in range(n)]
        scaled, other = (tiles[i] for i in update.taken)
        for head, of_head in enumerate(of_heads):
            own = pl.ds(head * d, d)
            factor = jnp.exp2(laid((of_head.since if update.backward else of_head.until)[...], 1))
            taking[:, own] = (wide(scaled.at[:, own]) * rows(factor, d)).astype(jnp.bfloat16)
        plgpu.commit_smem()
        for head, of_head in enumerate(of_heads):
            own = pl.ds(head * d, d)
            own_states = [ref.at[own, own] for ref in (*halves, *states_given)]
            found, of_tokens = update.step([ref.at[:, own] for ref in tiles], own_states, of_head)
            for x, ref in zip(found, leaving, strict=True):
                ref[:, own] = x.astype(jnp.bfloat16)
            for i, x in enumerate(of_tokens):
                numbers[0][i * n + head] = x
        passing = rows(laid(decays[slot, 2 * n], 1), ROWS)
        if numbers:
            both = jnp.where(_same_head(d), state * (wide(states_given[0]) + wide(states_given[1])), 0.0)
            numbers[0][update.numbers * n] = jnp.sum(both * passing, 1)
        state = state * passing + product(taking, other, (True, False))
        plgpu.commit_smem()  # no thread reads this slot any more
        for ref, target in zip(leaving, results, strict=True):
            plgpu.copy_smem_to_gmem(ref, target.at[tokens(step)])
        if keeping:
            for ref, target in zip(halves, keeping, strict=True):
                plgpu.copy_smem_to_gmem(ref, target.at[states(step)])
        for ref, target in zip(numbers, of_numbers, strict=True):
            plgpu.copy_smem_to_gmem(ref, target.at[image, pack, at(step)])
        pl.when(step + SLOTS < layout.tiles)(lambda: fetch(step + SLOTS))
        return state

    carried[...] = jax.lax.fori_loop(0, layout.tiles, run, laid(carried[...]))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(carried, last.at[pl.ds(block * ROWS, ROWS)])
    plgpu.wait_smem_to_gmem(0)


def _same_head(head_dim):
    """Where a state has a head's keys by its values."""
    row, column = (laid(jax.lax.broadcasted_iota(jnp.int32, (ROWS, ROWS), axis)) for axis in (0, 1))
    return jax.lax.div(row, head_dim) == jax.lax.div(column, head_dim)
