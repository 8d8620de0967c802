"""Window attention on sm_90 GPUs: a Pallas Mosaic GPU kernel that reads windows from the map and writes them in place.

A block takes one head and every `splits`-th window of it (`runs.py`). The runs of a window's q, k and v are copied from
the map [B, H, W, heads, d] to shared memory, where the next window's follow while this one is computed: from where the
copies land, the operands are first moved into the tiles that the tensor cores read, which frees that place. Scores stay
in registers. The bias lies in shared memory for as long as the block lives. No window and no mask is written to the
GPU's memory, only two numbers a token that tell which keys a query sees.

The backward pass computes the probabilities again: the operands are its only residuals. Each block sums its own part of
the bias's gradient, and the parts are summed in a fixed order outside: results are the same from run to run. Windows
above 64 slots have only the forward kernel; their gradient is the XLA path's.

Written against the interpreter and the lowering for an H200, before any run on one. What to look at first there: each
run is a copy of its own, and all 128 threads arrive at the barrier for each. One copy of a whole window would need a
view of shared memory in three dimensions, which Mosaic GPU does not fold into the two of a product's tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.mosaic_gpu import LOG2E, call, columns, laid, product, tile
from vision_jax.kernels.mosaic_gpu import rows as rows_of
from vision_jax.kernels.packed_heads import MASKED
from vision_jax.kernels.window_attention import xla
from vision_jax.kernels.window_attention.xla import partition, seam_sides


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def window_attention(q, k, v, bias, key_mask, scale, runs):
    """q, k, v [B, H, W, heads, head_dim], bias and key_mask as the public function's or None, scale [heads]."""
    (out,) = _call(runs, (q, k, v), bias, key_mask, scale)
    return out


def _forward(q, k, v, bias, key_mask, scale, runs):
    return window_attention(q, k, v, bias, key_mask, scale, runs), (q, k, v, bias, key_mask, scale)


def _backward(runs, residuals, d_out):
    q, k, v, bias, key_mask, scale = residuals
    if runs.rows > ROWS:
        dq, dk, dv, d_bias, d_scale = jax.vjp(lambda *a: _by_xla(runs, key_mask, *a), q, k, v, bias, scale)[1](d_out)
        return dq, dk, dv, d_bias, None, d_scale
    dq, dk, dv, d_scale, *parts = _call(runs, (q, k, v, d_out), bias, key_mask, scale)
    d_bias = jnp.sum(parts[0], 0)[:, runs.slots[:, None], runs.slots].astype(bias.dtype) if parts else None
    return dq, dk, dv, d_bias, None, jnp.sum(d_scale, (0, 2))


window_attention.defvjp(_forward, _backward)


def _by_xla(runs, key_mask, q, k, v, bias, scale):
    return xla.window_attention(
        q, k, v, window_size=runs.window, shift=runs.shift, dilation=runs.dilation, halo=(0, 0), border="mask",
        bias=bias, query_bias=None, key_mask=key_mask, key_windows=None, scale=scale,
    )[0]  # fmt: skip


# The call.


def _call(runs, tensors, bias, key_mask, scale):
    """The forward kernel for (q, k, v): its result. The backward one for (q, k, v, d_out): their gradients, and each
    block's part of those of the scale [splits, heads, slots] and of the bias [splits, heads, slots, slots].
    """
    backward = len(tensors) == 4
    q, rows, d = tensors[0], runs.rows, runs.head_dim
    bf16, f32 = jnp.bfloat16, jnp.float32
    sides = _sides(runs, key_mask)
    flat = [runs.view(x) for x in tensors]
    operands = [scale.astype(f32), *flat]
    if bias is not None:
        table = jnp.zeros((runs.heads, rows, rows), f32)
        table = table.at[:, runs.slots[:, None], runs.slots].set(bias.astype(f32) * LOG2E)
        operands.append(table.reshape(runs.heads * rows, rows))
    if sides is not None:
        operands.append(sides)

    results = 3 if backward else 1
    out_type = [jax.ShapeDtypeStruct(flat[0].shape, bf16)] * results
    if backward:
        out_type.append(jax.ShapeDtypeStruct((runs.splits, runs.heads, rows), f32))
        out_type += [jax.ShapeDtypeStruct((runs.splits, runs.heads, rows, rows), f32)] * (bias is not None)

    landing = [plgpu.SMEM((rows, d), bf16) for _ in tensors]
    tiles = [tile((rows, d)) for _ in tensors]
    leaving = [plgpu.SMEM((rows, d), bf16) for _ in range(results)]
    # What is there in one case and not in the other.
    table = [tile((ROWS, rows), f32), plgpu.Barrier()] if bias is not None else []
    seen = [[plgpu.SMEM((rows,), f32)] * 2 for _ in range(2)] if sides is not None else [[], []]
    pairs = [tile((rows, rows), columns=d)] * 2 + [plgpu.SMEM((rows,), f32)] if backward else []
    arrivals = len(tensors) * runs.copies + 2 * (sides is not None)
    products = 5 if backward else 2
    scores = runs.batch * runs.windows * runs.tokens**2 * runs.heads
    out = call(
        functools.partial(_kernel, runs, bias is not None, None if sides is None else sides.shape[0]),
        operands,
        out_type=out_type,
        scratch=[landing, tiles, leaving, table, seen, pairs, plgpu.Barrier(num_arrivals=arrivals)],
        grid=(runs.splits, runs.heads),
        names=("split", "head"),
        cost=pl.CostEstimate(
            flops=products * 2 * scores * d,
            transcendentals=scores,
            bytes_accessed=(len(tensors) + results) * q.size * 2
            + runs.splits * runs.heads * rows * rows * 4 * backward,
        ),
        name="window_attention_backward" if backward else "window_attention",
    )
    return [x.reshape(q.shape) for x in out[:results]] + list(out[results:])


def _sides(runs, key_mask):
    """Which keys a query sees: those of its side. float32 [windows of their own, of queries and of keys, slots].

    Windows of their own are one, those of an image, or all. A key that nobody sees is of side -1. None where every
    query sees every slot.
    """
    if not any(runs.shift) and key_mask is None and runs.tokens == runs.rows:
        return None
    side = jnp.zeros((1, runs.tokens))
    if any(runs.shift):
        side = jnp.asarray(seam_sides(runs.size, runs.window, runs.shift, runs.dilation), jnp.float32)
    of_keys = side
    if key_mask is not None:
        seen = partition(jnp.roll(key_mask, (-runs.shift[0], -runs.shift[1]), (1, 2)), runs.window, runs.dilation)
        of_keys = jnp.where(seen, side, -1.0).reshape(-1, runs.tokens)
        side = jnp.broadcast_to(side, seen.shape).reshape(-1, runs.tokens)
    out = jnp.full((side.shape[0], 2, runs.rows), -1.0)
    return out.at[:, :, runs.slots].set(jnp.stack([side, of_keys], 1))


# One block.


def _kernel(runs, has_table, own_windows, scale, *refs):
    refs = list(refs)

    def take(n):
        return [refs.pop(0) for _ in range(n)]

    landing, tiles, leaving, table, seen, pair_tiles, arrived = refs[-7:]
    refs = refs[:-7]
    sources = take(len(landing))
    (bias,) = take(1) if has_table else (None,)
    (sides,) = take(1) if own_windows else (None,)
    targets = take(len(leaving))
    d_scale, d_bias = (*refs, None, None)[:2]
    split, head = jax.lax.axis_index("split"), jax.lax.axis_index("head")
    factor = scale[head]
    count = jax.lax.div(runs.batch * runs.windows - split + runs.splits - 1, runs.splits)

    def window(n):
        return split + n * runs.splits

    rows = runs.rows

    def fetch(n):
        for slots, place in runs.places(window(n), head):
            for source, target in zip(sources, landing, strict=True):
                plgpu.copy_gmem_to_smem(source.at[place], target.at[slots], arrived)
        for n_side, target in enumerate(seen[0]):
            plgpu.copy_gmem_to_smem(sides.at[jax.lax.rem(window(n), own_windows), n_side], target, arrived)

    def fetch_bias(part):
        plgpu.copy_gmem_to_smem(bias.at[pl.ds(head * rows + part * ROWS, ROWS)], table[0], table[1])
        plgpu.barrier_wait(table[1])

    for place in landing:  # no copy reaches the slots without a token, whose rows meet probabilities of zero
        place[...] = laid(jnp.zeros(place.shape, place.dtype))
    plgpu.commit_smem()
    fetch(0)
    if has_table and rows == ROWS:
        fetch_bias(0)

    def probabilities(part):
        """Of 64 queries: q k^T and exp(scores - their maximum) [64, slots], one over the sum of each row."""
        plain = product(tiles[0].at[pl.ds(part * ROWS, ROWS)], tiles[1], (False, True))
        scores = plain * (factor * LOG2E)
        if has_table:
            if rows > ROWS:
                fetch_bias(part)
            scores = scores + laid(table[0][...])
        if own_windows:
            of_query = rows_of(laid(seen[1][0][pl.ds(part * ROWS, ROWS)], 1), rows)
            of_key = columns(laid(seen[1][1][...], 0), ROWS)
            scores = jnp.where(of_query == of_key, scores, MASKED)
        p = jnp.exp2(scores - rows_of(jnp.max(scores, 1), rows))
        if own_windows:
            p = jnp.where(of_query == of_key, p, 0.0)
        total = jnp.sum(p, 1)
        return plain, p, 1 / jnp.where(total > 0, total, 1.0)

    def step(n, sums):
        plgpu.barrier_wait(arrived)
        for place, moved in zip(landing, tiles, strict=True):
            moved[...] = laid(place[...])
        for place, moved in zip(seen[0], seen[1], strict=True):
            moved[...] = laid(place[...], 1)
        plgpu.commit_smem()
        pl.when(n + 1 < count)(lambda: fetch(n + 1))

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        if len(tiles) == 3:
            for part in range(rows // ROWS):
                _, p, norm = probabilities(part)
                out = product(p.astype(jnp.bfloat16), tiles[2]) * rows_of(norm, runs.head_dim)
                leaving[0][pl.ds(part * ROWS, ROWS)] = out.astype(jnp.bfloat16)
        else:
            q, k, v, d_out = tiles
            plain, p, norm = probabilities(0)
            p = p * rows_of(norm, rows)
            d_p = product(d_out, v, (False, True))
            d_scores = p * (d_p - rows_of(jnp.sum(p * d_p, 1), rows))
            sums = [sums[0] + jnp.sum(d_scores * plain, 1), *(total + d_scores for total in sums[1:])]
            pair_tiles[0][...] = p.astype(jnp.bfloat16)
            pair_tiles[1][...] = (d_scores * factor).astype(jnp.bfloat16)
            plgpu.commit_smem()
            leaving[0][...] = product(pair_tiles[1], k).astype(jnp.bfloat16)
            leaving[1][...] = product(pair_tiles[1], q, (True, False)).astype(jnp.bfloat16)
            leaving[2][...] = product(pair_tiles[0], d_out, (True, False)).astype(jnp.bfloat16)
        plgpu.commit_smem()
        for slots, place in runs.places(window(n), head):
            for source, target in zip(leaving, targets, strict=True):
                plgpu.copy_smem_to_gmem(source.at[slots], target.at[place])
        return sums

    sums = [laid(jnp.zeros((ROWS,), jnp.float32), 1)] if d_scale is not None else []
    sums += [laid(jnp.zeros((ROWS, rows), jnp.float32))] if d_bias is not None else []
    sums = jax.lax.fori_loop(0, count, step, sums)
    for total, place, target in zip(sums, (pair_tiles[-1:] + table[:1]), (d_scale, d_bias), strict=False):
        place[...] = total
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(place, target.at[split, head])
    plgpu.wait_smem_to_gmem(0)
