"""Neighborhood attention on TPU: a Pallas kernel that reads tiles of queries and the keys around them from the map.

The map is [B D, H, W, C] with the heads side by side in C; an image has one plane, D = 1. A grid step takes a tile of
queries and, as overlapping blocks, the keys that their windows reach; nothing is copied into windows. Which key a query
sees, and the bias between them, is a table over the few patterns that tiles show: inside the map, at its borders, in
its corners.

The backward pass computes the probabilities again, tile by tile, and sums the gradients of keys and values over the
tiles of a band in VMEM; where bands overlap their sums are added outside. The operands are the only residuals.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, limits
from vision_jax.kernels.neighborhood_attention import pattern_table
from vision_jax.kernels.neighborhood_attention.key_bands import join
from vision_jax.kernels.neighborhood_attention.query_tiles import SUBLANES
from vision_jax.kernels.neighborhood_attention.tile_order import FIELDS
from vision_jax.kernels.packed_heads import HeadSum, concatenate, head_scores, softmax, transposed


def neighborhood_attention(q, k, v, bias, scale, tiles):
    """The output, or (output, log-sum-exp [B, D, H, W, heads, 1]) where the layout returns both.

    Args:
      q: [B, D, H, W, heads, head_dim].
      k, v: [B, D, H, W, key_heads, head_dim].
      bias: [heads, 2 * kernel_size - 1 of the planes, of the rows, of the columns], or None.
      scale: a number.
      tiles: the layout.
    """
    out, lse = _attend(q, k, v, bias, scale, tiles)
    return (out, lse) if tiles.returns_lse else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, bias, scale, tiles):
    operands = dict(q=q, k=_spread(k, tiles), v=_spread(v, tiles))
    found = _call(tiles, scale, operands, ["out", *["lse"] * tiles.returns_lse], bias)
    return found["out"].reshape(q.shape), tiles.from_rows(found["lse"])[..., None] if tiles.returns_lse else None


def _forward(q, k, v, bias, scale, tiles):
    return _attend(q, k, v, bias, scale, tiles), (q, k, v, bias)


def _backward(scale, tiles, residuals, cotangents):
    q, k, v, bias = residuals
    d_out, d_lse = cotangents
    d_lse = tiles.to_rows(d_lse) if tiles.returns_lse else None
    operands = dict(q=q, k=_spread(k, tiles), v=_spread(v, tiles), d_out=d_out.astype(q.dtype), d_lse=d_lse)
    found = _call(tiles, scale, operands, ["dq", "dk", "dv", *["d_columns"] * (bias is not None)], bias)
    to_bias = jax.vjp(tiles.columns_table, bias)[1]
    d_bias = None if bias is None else to_bias(found["d_columns"])[0]
    return found["dq"].reshape(q.shape), _gather(found["dk"], k, tiles), _gather(found["dv"], v, tiles), d_bias


_attend.defvjp(_forward, _backward)


def _spread(x, tiles):
    """The keys' map, each head as often as it serves a query head."""
    x, repeats = tiles.with_zeros(x), tiles.heads.count // x.shape[-2]
    return x if repeats == 1 else jnp.repeat(x, repeats, -2)


def _gather(gradient, x, tiles):
    """The transpose of `_spread`, of what the kernel has summed in bands: the gradient of x."""
    gradient = tiles.without_zeros(join(gradient, tiles.bands, tiles.key_size))
    # planes join the images here too, because XLA does not fuse a conversion of more axes with what reads it
    gradient = gradient.reshape(-1, *x.shape[2:-1], tiles.heads.count // x.shape[-2], x.shape[-1])
    gradient = gradient.sum(-2) if gradient.shape[-2] > 1 else gradient
    return gradient.astype(x.dtype).reshape(x.shape)


def _call(tiles, scale, operands, results, bias):
    """A kernel over named tensors, forward for the result "out" and backward for "dq": {name: result}.

    Args:
      tiles, scale, bias: as `neighborhood_attention` takes them.
      operands: {name: array, or None where absent}; maps are [B, D, H, W, heads, head_dim], k and v the keys' map.
      results: names; maps are [B D, H, W, C], sums of the keys' gradients [B, bands * planes, rows, columns, C].
    """
    operands = {name: x for name, x in operands.items() if x is not None}
    q, heads, backward, biased = operands["q"], tiles.heads, "dq" in results, bias is not None
    B, C, images, tokens = tiles.batch, heads.channels, tiles.step_images, math.prod(tiles.size)
    (planes, *size), (Kd, *key_block), (Td, *block) = tiles.size, tiles.keys, tiles.tile
    # Planes join the images: of these a block has several only where it has all planes.
    map_shape = (B * planes, *size, C)
    columns, places = tiles.columns_table(bias), tiles.places(biased)
    # What is one number for all tiles the kernel is not told tile by tile.
    known = {name: int(field[0]) for name, field in places.items() if (field == field[0]).all()}
    told = [name for name in FIELDS if name not in known] or FIELDS[:1]

    def reader(places, tile):
        return lambda name: known[name] if name in known else places[told.index(name), tile]

    def of_tile(group, step, tile, places, _):
        at = reader(places, tile)
        return (step * tiles.tiles[0] + at("plane"), at("row"), at("column"), group)

    def of_keys(group, step, tile, places, _):
        at = reader(places, tile)
        column = at("key_column") * SUBLANES if tiles.keys[-1] < tiles.key_size[-1] else 0
        plane = step * (images * tiles.key_size[0]) + at("key_plane")
        return (plane, at("key_row"), column, heads.first_lane(group))

    def of_band(group, step, tile, places, _):
        return (step, reader(places, tile)("band"), 0, 0, group)

    def of_rows(group, step, tile, places, _):
        return (step, group, reader(places, tile)("tile"), 0, 0)

    query = pl.BlockSpec((images * Td, *block, heads.lanes), of_tile)
    key = pl.BlockSpec(tuple(map(pl.Element, (images * Kd, *key_block, heads.lanes))), of_keys)
    band_planes, *band_size = (bands.keys for bands in tiles.bands)
    band = pl.BlockSpec((images, band_planes, *band_size, heads.lanes), of_band)
    rows = pl.BlockSpec((images, 1, 1, *tiles.rows_shape[3:]), of_rows)
    N, M, in_table = math.prod(tiles.tile), math.prod(tiles.keys), heads.in_step if biased else 1
    of_columns = pl.BlockSpec(
        (columns.shape[0], in_table, *columns.shape[2:]),
        lambda group, step, tile, *_: (0, group if biased else 0, 0, 0, 0),
    )
    special = dict(k=key, v=key, dk=band, dv=band, lse=rows, d_lse=rows, columns=of_columns, d_columns=of_columns)
    bands_shape = (B, math.prod(len(bands.first) for bands in tiles.bands) * band_planes, *band_size, C)
    shapes = dict(lse=tiles.rows_shape, d_columns=columns.shape, dk=bands_shape, dv=bands_shape)
    shapes |= dict(out=map_shape) if tiles.wide else {}  # in float32
    out_shapes = [
        jax.ShapeDtypeStruct(shapes[name], jnp.float32) if name in shapes
        else jax.ShapeDtypeStruct(map_shape, q.dtype) for name in results
    ]  # fmt: skip
    operands = {name: x if name == "d_lse" else x.reshape(-1, *x.shape[2:-2], C) for name, x in operands.items()}
    operands["columns"] = columns
    table = pltpu.VMEM((tiles.slots(biased), in_table, N, M), jnp.float32)

    def body(places, rows_of, *refs):
        names = [*operands, *results]
        at = reader(places, pl.program_id(2))
        _kernel(tiles, scale, biased, at, rows_of, dict(zip(names, refs, strict=False)), *refs[len(names) :])

    out = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=tiles.grid,
            in_specs=[special.get(name, query) for name in operands],
            out_specs=[special.get(name, query) for name in results],
            scratch_shapes=[table] * (1 + (backward and biased)),
        ),
        out_shape=out_shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=limits.step_vmem(tiles.vmem(biased, q.dtype.itemsize, backward)),
        ),
        cost_estimate=pl.CostEstimate(
            flops=(5 if backward else 2) * 2 * B * tokens * M * C,
            transcendentals=B * tokens * M * heads.count,
            # keys and values are read with every tile that they are beside, all else once
            bytes_accessed=2 * tiles.grid[2] * M * B * C * q.dtype.itemsize
            + sum(x.size * x.dtype.itemsize for name, x in operands.items() if name not in ("k", "v"))
            + sum(x.size * x.dtype.itemsize for x in out_shapes),
        ),
        interpret=dispatch.interpret(),
        name="neighborhood_attention_backward" if backward else "neighborhood_attention",
    )(jnp.asarray([places[name] for name in told]), jnp.asarray(tiles.rows_of(biased)), *operands.values())
    return dict(zip(results, out, strict=True))


def _kernel(tiles, scale, biased, at, rows_of, refs, table, d_table=None):
    """One grid step, in VMEM; `at` reads a field of the tile, refs are by the names of operands and results."""
    heads, backward, slot = tiles.heads, "dq" in refs, at("slot")
    q, k, v = (_tokens(refs[name], tiles.step_images) for name in "qkv")
    opens, closes = at("opens_slot") == 1, at("closes_slot") == 1
    if tiles.slots(biased) == math.prod(tiles.patterns):  # a table serves all images
        opens, closes = opens & (pl.program_id(1) == 0), closes & (pl.program_id(1) == pl.num_programs(1) - 1)

    if d_table is not None:

        @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
        def _():
            refs["d_columns"][...] = jnp.zeros_like(refs["d_columns"])

    @pl.when(opens)
    def _():
        pattern_table.make(tiles, at, rows_of, refs["columns"], table)
        if d_table is not None:
            d_table[slot] = jnp.zeros(d_table.shape[1:], d_table.dtype)

    if backward:
        d_out = _tokens(refs["d_out"], tiles.step_images)

        @pl.when(at("opens_band") == 1)
        def _():
            for name in ("dk", "dv"):
                refs[name][...] = jnp.zeros_like(refs[name])

    sums = [HeadSum(heads) for _ in range(3 if backward else 1)]
    for head in range(heads.in_step):
        scores = head_scores(heads, q, k, head) * scale + table[slot, head if biased else 0][None]
        p, norm, lse = softmax(scores, masked=False)
        if "lse" in refs:
            refs["lse"][:, 0, 0, head : head + 1, :] = transposed(lse)
        if not backward:
            sums[0].add(head, p.astype(v.dtype), v, ((2,), (1,)), norm)
            continue
        p = p * norm
        d_p = head_scores(heads, d_out, v, head)
        held = jnp.sum(p * d_p, -1, keepdims=True)
        if "d_lse" in refs:
            held = held - transposed(refs["d_lse"][:, 0, 0, head : head + 1, :])
        d_scores = p * (d_p - held)
        if d_table is not None:
            d_table[slot, head] += jnp.sum(d_scores, 0)
        d_scores = (d_scores * scale).astype(q.dtype)
        sums[0].add(head, d_scores, k, ((2,), (1,)))
        sums[1].add(head, d_scores, q, ((1,), (1,)))
        sums[2].add(head, p.astype(q.dtype), d_out, ((1,), (1,)))
    out, *to_keys = (total.value() for total in sums)
    out_ref = refs["dq" if backward else "out"]
    out = out.astype(out_ref.dtype)
    for image, plane, y, row in _rows(tiles.step_images, tiles.tile):
        out_ref[image * tiles.tile[0] + plane, y] = out[row]
    columns = slice(None)
    if tiles.keys[-1] < tiles.bands[-1].keys:
        columns = pl.ds(pl.multiple_of(at("band_column") * SUBLANES, SUBLANES), tiles.keys[-1])
    for name, total in zip(("dk", "dv"), to_keys, strict=False):
        for image, plane, y, row in _rows(tiles.step_images, tiles.keys):
            refs[name][image, at("band_plane") + plane, at("band_row") + y, columns] += total[row]
    if d_table is not None:

        @pl.when(closes)
        def _():
            pattern_table.add(tiles, at, rows_of, d_table, refs["d_columns"])


def _tokens(ref, images):
    """A block [images * planes, rows, columns, lanes] -> [images, planes * rows * columns, lanes]."""
    planes, rows = ref.shape[0] // images, range(ref.shape[1])
    places = ([(image * planes + plane, y) for plane in range(planes) for y in rows] for image in range(images))
    return jnp.stack([concatenate([ref[place] for place in own]) for own in places])


def _rows(images, tile):
    """Yields image, plane, row, and where they are in [images, tokens], of a tile (planes, rows, columns) an image."""
    planes, rows, columns = tile
    for image in range(images):
        for i, (plane, y) in enumerate(itertools.product(range(planes), range(rows))):
            yield image, plane, y, (image, slice(i * columns, (i + 1) * columns))
