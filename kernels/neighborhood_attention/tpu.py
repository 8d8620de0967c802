"""Neighborhood attention on TPU: a Pallas kernel that reads tiles of queries and the keys around them from the map.

The map is [B, H, W, C] with the heads side by side in C. A grid step takes a tile of queries and, as overlapping
blocks, the keys that their windows reach; nothing is copied into windows. Which key a query sees, and the bias between
them, is a table over the few patterns that tiles show: inside the map, at its borders, in its corners.

The backward pass computes the probabilities again, tile by tile, and sums the gradients of keys and values over the
tiles in VMEM. The operands are the only residuals.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, limits
from vision_jax.kernels.neighborhood_attention.query_tiles import SUBLANES
from vision_jax.kernels.packed_heads import MASKED, HeadSum, concatenate, head_scores, softmax


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def neighborhood_attention(q, k, v, bias, scale, tiles):
    """q, k, v [B, H, W, heads, head_dim], bias [heads, 2 * kernel_size - 1, ...] or None; scale a number."""
    (out,) = _call(tiles, scale, (q, k, v), tiles.columns_table(bias), bias is not None)
    return out


def _forward(q, k, v, bias, scale, tiles):
    return neighborhood_attention(q, k, v, bias, scale, tiles), (q, k, v, bias)


def _backward(scale, tiles, residuals, d_out):
    q, k, v, bias = residuals
    columns, to_bias = jax.vjp(tiles.columns_table, bias)
    dq, dk, dv, *d_columns = _call(tiles, scale, (q, k, v, d_out), columns, bias is not None)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), to_bias(*d_columns)[0] if d_columns else None


neighborhood_attention.defvjp(_forward, _backward)


def _call(tiles, scale, tensors, columns, biased):
    """The forward kernel for (q, k, v), the backward one for (q, k, v, d_out)."""
    backward = len(tensors) == 4
    q, heads = tensors[0], tiles.heads
    B, H, W, C = tiles.batch, *tiles.size, heads.channels
    images, (Tq, Tw), (Kh, Kw), across = tiles.step_images, tiles.tile, tiles.keys, tiles.tiles[1]

    def of_tile(group, step, tile, places):
        return (step, jax.lax.div(tile, across), jax.lax.rem(tile, across), group)

    def of_keys(group, step, tile, places):
        column = places[tile, 1] * SUBLANES if Kw < W else 0
        return (step * images, places[tile, 0], column, heads.first_lane(group))

    query = pl.BlockSpec((images, Tq, Tw, heads.lanes), of_tile)
    key = pl.BlockSpec(tuple(map(pl.Element, (images, Kh, Kw, heads.lanes))), of_keys)
    whole = pl.BlockSpec((images, H, W, heads.lanes), lambda group, step, tile, places: (step, 0, 0, group))
    N, M, in_table = Tq * Tw, Kh * Kw, heads.in_step if biased else 1
    of_columns = pl.BlockSpec(
        (columns.shape[0], in_table, *columns.shape[2:]),
        lambda group, step, tile, places: (0, group if biased else 0, 0, 0, 0),
    )
    table = pltpu.VMEM((tiles.patterns[0] * tiles.patterns[1], in_table, N, M), jnp.float32)
    out_specs, out_shapes = [query], [jax.ShapeDtypeStruct((B, H, W, C), q.dtype)]
    if backward:
        out_specs += [whole, whole]
        out_shapes += [jax.ShapeDtypeStruct((B, H, W, C), jnp.float32)] * 2
    if backward and biased:
        out_specs.append(of_columns)
        out_shapes.append(jax.ShapeDtypeStruct(columns.shape, jnp.float32))
    out = pl.pallas_call(
        functools.partial(_kernel, tiles, scale, biased, backward),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=tiles.grid,
            in_specs=[query, key, key, *[query] * backward, of_columns],
            out_specs=out_specs,
            scratch_shapes=[table] * (1 + (backward and biased)),
        ),
        out_shape=out_shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=limits.step_vmem(tiles.vmem(biased, q.dtype.itemsize, backward)),
        ),
        cost_estimate=pl.CostEstimate(
            flops=(5 if backward else 2) * 2 * B * H * W * M * C,
            transcendentals=B * H * W * M * heads.count,
            # keys and values are read with every tile that they are beside, all else once
            bytes_accessed=(1 + backward) * q.size * q.dtype.itemsize
            + 2 * tiles.grid[2] * M * B * C * q.dtype.itemsize
            + sum(x.size * x.dtype.itemsize for x in (*out_shapes, columns)),
        ),
        interpret=dispatch.interpret(),
        name="neighborhood_attention_backward" if backward else "neighborhood_attention",
    )(jnp.asarray(tiles.places), *(x.reshape(B, H, W, C) for x in tensors), columns)
    results = 3 if backward else 1
    return [x.reshape(q.shape) for x in out[:results]] + list(out[results:])


def _kernel(tiles, scale, biased, backward, places, *refs):
    """Forward (q, k, v, columns -> out), backward (q, k, v, d_out, columns -> dq, dk, dv, d_columns)."""
    tensors, (columns, *refs) = refs[: 3 + backward], refs[3 + backward :]
    outs, scratch = refs[: len(refs) - 1 - (backward and biased)], refs[len(refs) - 1 - (backward and biased) :]
    table, *d_table = scratch
    heads, tile, last = tiles.heads, pl.program_id(2), pl.num_programs(2) - 1
    q, k, v, *d_out = (_tokens(ref) for ref in tensors)
    pattern = places[tile, 2]

    @pl.when((tile == 0) & (pl.program_id(1) == 0))
    def _():
        _make_table(tiles, biased, columns, table)
        for ref in d_table:
            ref[...] = jnp.zeros_like(ref)

    if backward:
        _, dk, dv, *d_columns = outs

        @pl.when(tile == 0)
        def _():
            dk[...], dv[...] = jnp.zeros_like(dk), jnp.zeros_like(dv)

    sums = [HeadSum(heads) for _ in range(3 if backward else 1)]
    for head in range(heads.in_step):
        scores = head_scores(heads, q, k, head) * scale + table[pattern, head if biased else 0][None]
        p, norm = softmax(scores, masked=False)
        if not backward:
            sums[0].add(head, p.astype(v.dtype), v, ((2,), (1,)), norm)
            continue
        p = p * norm
        d_p = head_scores(heads, d_out[0], v, head)
        d_scores = p * (d_p - jnp.sum(p * d_p, -1, keepdims=True))
        for ref in d_table:
            ref[pattern, head] += jnp.sum(d_scores, 0)
        d_scores = (d_scores * scale).astype(q.dtype)
        sums[0].add(head, d_scores, k, ((2,), (1,)))
        sums[1].add(head, d_scores, q, ((1,), (1,)))
        sums[2].add(head, p.astype(q.dtype), d_out[0], ((1,), (1,)))
    out, *to_keys = (total.value() for total in sums)
    _, height, width, _ = outs[0].shape
    out = out.astype(outs[0].dtype)
    for b in range(tiles.step_images):
        for y in range(height):
            outs[0][b, y] = out[b, y * width : (y + 1) * width]
    rows, columns = tiles.keys
    place = slice(None)
    if columns < tiles.size[1]:
        place = pl.ds(pl.multiple_of(places[tile, 1] * SUBLANES, SUBLANES), columns)
    for ref, total in zip(outs[1:3], to_keys, strict=True):
        for b in range(tiles.step_images):
            for y in range(rows):
                ref[b, places[tile, 0] + y, place] += total[b, y * columns : (y + 1) * columns]
    if d_table:

        @pl.when((tile == last) & (pl.program_id(1) == pl.num_programs(1) - 1))
        def _():
            _sum_table(tiles, d_table[0], d_columns[0])


def _tokens(ref):
    """A block [n, rows, columns, lanes] -> [n, rows * columns, lanes]."""
    n, rows, _, _ = ref.shape
    return jnp.stack([concatenate([ref[b, y] for y in range(rows)]) for b in range(n)])


def _make_table(tiles, biased, columns, table):
    """Bias and mask of whole tiles, [patterns, heads, queries, keys], of those along the columns."""
    (Th, Tw), (Kh, Kw), (across_rows, across) = tiles.tile, tiles.keys, tiles.patterns
    unseen = jnp.full((Tw, Kw), MASKED, jnp.float32)

    def make(n, _):
        pattern, head = jax.lax.div(n, columns.shape[1]), jax.lax.rem(n, columns.shape[1])
        for of_rows in range(across_rows):
            for query in range(Th):
                found = [tiles.row_of(of_rows, query, key, biased) for key in range(Kh)]
                row = [unseen if place is None else columns[pattern, head, place] for place in found]
                place = slice(query * Tw, (query + 1) * Tw)
                table[of_rows * across + pattern, head, place] = jnp.concatenate(row, 1) if Kh > 1 else row[0]

    jax.lax.fori_loop(0, across * columns.shape[1], make, None)


def _sum_table(tiles, d_table, d_columns):
    """The transpose of `_make_table`."""
    (Th, Tw), (Kh, Kw), (across_rows, across) = tiles.tile, tiles.keys, tiles.patterns
    heads = d_columns.shape[1]

    def add(n, _):
        pattern, head = jax.lax.div(n, heads), jax.lax.rem(n, heads)
        sums = {}
        for of_rows in range(across_rows):
            for query in range(Th):
                row = d_table[of_rows * across + pattern, head, query * Tw : (query + 1) * Tw]
                for key in range(Kh):
                    if (place := tiles.row_of(of_rows, query, key, True)) is not None:
                        part = row[:, key * Kw : (key + 1) * Kw]
                        sums[place] = sums[place] + part if place in sums else part
        for place in range(d_columns.shape[2]):
            d_columns[pattern, head, place] = sums.get(place, jnp.zeros((Tw, Kw), jnp.float32))

    jax.lax.fori_loop(0, across * heads, add, None)
