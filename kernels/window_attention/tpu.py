"""Window attention on TPU: a Pallas kernel that reads bands of windows from the map and writes them back in place.

The map is read as [B, H, W, C], the heads side by side in C, and never copied into windows: a grid step takes a band
(`bands.py`), cuts it into windows in VMEM and puts their results together again. The cyclic shift is in where a band is
read and written; the bias and the mask of the shift's seam are one small table. A head of 32 channels fills a quarter
of the matrix unit, so heads are not sliced out: the other heads' lanes are multiplied by zero, and products over all
lanes give what the head alone would.

The backward pass computes the probabilities again from q and k: the operands are its only residuals.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, limits
from vision_jax.kernels.packed_heads import LANES, MASKED, HeadSum, concatenate, dot, head_scores, softmax
from vision_jax.kernels.window_attention.xla import partition, seam_mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def window_attention(q, k, v, bias, key_mask, scale, bands):
    """q, k, v [B, H, W, heads, head_dim], bias and key_mask as the public function's or None, scale [heads]."""
    (out,) = _call(bands, (q, k, v), bias, key_mask, scale)
    return out


def _forward(q, k, v, bias, key_mask, scale, bands):
    return window_attention(q, k, v, bias, key_mask, scale, bands), (q, k, v, bias, key_mask, scale)


def _backward(bands, residuals, d_out):
    q, k, v, bias, key_mask, scale = residuals
    dq, dk, dv, *d_bias = _call(bands, (q, k, v, d_out), bias, key_mask, scale)
    # scores are scale * q k^T, so that the sum of d_score * score over a head is that of dq * q.
    d_scale = jnp.einsum("bxyhd,bxyhd->h", dq, q, preferred_element_type=jnp.float32) / scale
    return dq, dk, dv, d_bias[0].reshape(bias.shape).astype(bias.dtype) if d_bias else None, None, d_scale


window_attention.defvjp(_forward, _backward)


# The call.


def _call(bands, tensors, bias, key_mask, scale):
    """The forward kernel for (q, k, v), the backward one for (q, k, v, d_out): flat operands, specs, results."""
    backward = len(tensors) == 4
    q, N = tensors[0], bands.tokens
    B, H, W, C = bands.batch, *bands.size, bands.heads.channels
    seam = bands.shift[0] > 0  # a band is then in two pieces of the map

    operands = [scale.astype(jnp.float32)]
    specs = [pl.BlockSpec(memory_space=pltpu.SMEM)]
    for x in tensors:
        x = x.reshape(B, H, W, C)
        operands += [x, x] if seam else [bands.view(x)]
        specs += _pieces(bands) if seam else [pl.BlockSpec(bands.block, bands.block_index)]
    table, kind = _bias_table(bands, bias)
    if table is not None:
        operands.append(table)
        specs.append(_table_spec(bands, table))
    if key_mask is not None:
        keys = partition(jnp.roll(key_mask, (-bands.shift[0], -bands.shift[1]), (1, 2)), bands.window, bands.dilation)
        operands.append(jnp.where(keys, 0.0, MASKED).reshape(B, bands.steps, bands.step_windows, N))
        block = (bands.step_images, 1, bands.step_windows, N)
        specs.append(pl.BlockSpec(block, lambda group, step, images: (images, step, 0, 0)))

    results = 3 if backward else 1
    flat = jax.ShapeDtypeStruct(
        (B, H, W, C) if seam else bands.view(jnp.empty_like(q).reshape(B, H, W, C)).shape, q.dtype
    )
    out_shapes = [flat] * results
    out_specs = [pl.BlockSpec(memory_space=pl.ANY) if seam else pl.BlockSpec(bands.block, bands.block_index)] * results
    if backward and bias is not None:
        shape = (1, 1, bands.heads.count, N, N) if bias.ndim == 3 else table.shape
        out_shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
        out_specs.append(_table_spec(bands, out_shapes[-1]))
    piece = (2, results, bands.step_images, bands.rows, W, bands.heads.lanes)
    scratch = [pltpu.VMEM(piece, q.dtype), pltpu.SemaphoreType.DMA((2, results, 2))] if seam else []

    has_d_table = len(out_shapes) > results
    body = functools.partial(_kernel, bands, kind, table is not None, key_mask is not None, results, has_d_table)
    rounds = 5 if backward else 2  # products of [N, N] by head_dim
    out = pl.pallas_call(
        body,
        grid=bands.grid,
        in_specs=specs,
        out_specs=out_specs,
        out_shape=out_shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=limits.step_vmem(bands.vmem(q.dtype.itemsize)),
        ),
        cost_estimate=pl.CostEstimate(
            flops=rounds * 2 * B * H * W * N * C,
            transcendentals=B * H * W * N * bands.heads.count,
            # the map's pieces and the table, whose blocks change with the step but not with the batch, are read once
            bytes_accessed=(len(tensors) + results) * q.size * q.dtype.itemsize
            + sum(4 * x.size for x in (*operands[1 + len(tensors) * (1 + seam) :], *out_shapes[results:])),
        ),
        interpret=dispatch.interpret(),
        name="window_attention_backward" if backward else "window_attention",
    )(*operands)
    return [x.reshape(q.shape) for x in out[:results]] + list(out[results:])


def _pieces(bands):
    """Specs of the two pieces of a shifted step: the rows below its first `shift`, and the first of the next step."""
    shift, rows, W, lanes = bands.shift[0], bands.rows, bands.size[1], bands.heads.lanes

    def piece(height, start):
        block = tuple(map(pl.Element, (bands.step_images, height, W, lanes)))
        return pl.BlockSpec(
            block, lambda g, step, images: (images * bands.step_images, start(step), 0, bands.heads.first_lane(g))
        )

    def below(step):
        return jax.lax.rem(step + 1, bands.steps) * rows

    return [piece(rows - shift, lambda step: step * rows + shift), piece(shift, below)]


def _bias_table(bands, bias):
    """What is added to the scores: ([steps, kinds of window, heads, N, N] or None, what the kinds are).

    One of the two dimensions of a table for all windows is 1; that of a shifted map tells the last step from the others
    and, in a step, the windows on the seam: 2 * (in the last band) + (in the last column).
    """
    N = bands.tokens
    if bias is not None:
        bias = bias.astype(jnp.float32)
    if any(bands.shift):
        seen = jnp.where(seam_mask(bands.size, bands.window, bands.shift, bands.dilation), 0.0, MASKED)
        if bias is not None and bias.ndim == 4:
            bias = bias + seen[:, None]
        else:
            seen = seen.reshape(bands.bands, bands.columns, N, N)
            kinds = jnp.stack([seen[i, j] for i in (0, -1) for j in (0, -1)])  # inside, column, row, corner
            inner = kinds[jnp.array([0, 1, 0, 1])] if bands.steps > 1 else kinds
            table = jnp.stack([inner, kinds])[:, :, None]
            return table if bias is None else table + bias, "seam"
    if bias is None:
        return None, None
    if bias.ndim == 3:
        return bias[None, None], "all"
    return bias.reshape(bands.steps, bands.step_windows, bands.heads.count, N, N), "each"


def _table_spec(bands, table):
    steps, kinds, heads = table.shape[:3]
    of_step = {1: lambda step: 0, 2: lambda step: jnp.where(step == bands.steps - 1, 1, 0)}
    index = (lambda step: step) if steps == bands.steps and kinds == bands.step_windows else of_step[steps]
    block = (1, kinds, min(heads, bands.heads.in_step), bands.tokens, bands.tokens)
    of_group = (lambda group: group) if heads > 1 else (lambda group: 0)
    return pl.BlockSpec(block, lambda group, step, images: (index(step), 0, of_group(group), 0, 0))


# One grid step, in VMEM.


def _kernel(bands, kind, has_table, has_keys, results, has_d_table, scale, *refs):
    """Forward (q, k, v -> out) with one result, backward (q, k, v, d_out -> dq, dk, dv, d_bias) with three."""
    seam, backward = bands.shift[0] > 0, results == 3
    refs = list(refs)

    def take(n):
        return [refs.pop(0) for _ in range(n)]

    tensors = [_read(bands, take(2 if seam else 1)) for _ in range(4 if backward else 3)]
    (table,) = take(1) if has_table else (None,)
    (keys,) = take(1) if has_keys else (None,)
    out_refs = take(results)
    (d_table,) = take(1) if has_d_table else (None,)

    if d_table is not None:  # it is summed over all steps that show this block; the batch comes innermost
        first = (pl.program_id(2) == 0) & ((pl.program_id(1) == 0) | (kind == "each"))

        @pl.when(first)
        def _():
            d_table[...] = jnp.zeros_like(d_table)

    done = [{} for _ in range(results)]
    windows = list(tensors[0])
    for start in range(0, len(windows), bands.at_once):
        batch = windows[start : start + bands.at_once]
        q, k, v, *d_out = (jnp.stack([tensor[window] for window in batch]) for tensor in tensors)
        sums = [HeadSum(bands.heads) for _ in range(results)]
        for head in range(bands.heads.in_step):
            factor = scale[pl.program_id(0) * bands.heads.in_step + head]
            bias = _bias(bands, kind, batch, table, keys, head)
            scores = head_scores(bands.heads, q, k, head) * factor
            p, norm, _ = softmax(scores if bias is None else scores + bias, has_keys)
            if not backward:
                sums[0].add(head, p.astype(v.dtype), v, ((2,), (1,)), norm)
                continue
            p = p * norm
            d_p = head_scores(bands.heads, d_out[0], v, head)
            d_scores = p * (d_p - jnp.sum(p * d_p, -1, keepdims=True))
            if d_table is not None:
                _add_to_table(bands, kind, batch, d_table, head, d_scores)
            d_scores = (d_scores * factor).astype(q.dtype)
            sums[0].add(head, d_scores, k, ((2,), (1,)))
            sums[1].add(head, d_scores, q, ((1,), (1,)))
            sums[2].add(head, p.astype(q.dtype), d_out[0], ((1,), (1,)))
        for result, total in zip(done, sums, strict=True):
            total = total.value().astype(q.dtype)
            result.update((window, total[n]) for n, window in enumerate(batch))
    _write(bands, done, out_refs, refs)


def _kind(bands, kind, window):
    """A window's place in the bias table's second dimension."""
    _, i, j = window
    if kind == "each":
        return i * bands.columns + j
    return 0 if kind == "all" else 2 * (i == bands.step_bands - 1) + (j == bands.columns - 1)


def _bias(bands, kind, batch, table, keys, head):
    """What is added to one head's scores of a batch of windows: [n, N, N], [1, N, N] or None."""
    out = None
    if table is not None:
        head = min(head, table.shape[2] - 1)  # a mask alone is the same for all heads
        if kind == "all":
            out = table[0, 0, head][None]
        else:
            out = jnp.stack([table[0, _kind(bands, kind, window), head] for window in batch])
    if keys is not None:
        seen = jnp.stack([keys[b, 0, i * bands.columns + j][None] for b, i, j in batch])
        out = seen if out is None else out + seen
    return out


def _add_to_table(bands, kind, batch, d_table, head, d_scores):
    if kind != "each":
        d_table[0, 0, head] += jnp.sum(d_scores, 0)
        return
    for n, window in enumerate(batch):
        d_table[0, _kind(bands, kind, window), head] += d_scores[n]


# Between rows of the map and windows.


def _read(bands, refs):
    """A tensor's step -> {(image, band, column): window [N, lanes]}."""

    def row(b, i, y):
        if len(refs) == 2:  # the piece above the step's end, and the one below
            above, below = refs
            y += i * bands.window[0]
            return above[b, y] if y < above.shape[1] else below[b, y - above.shape[1]]
        return refs[0][b, i, y, 0] if bands.dilation[0] == 1 else refs[0][b, 0, y, i]

    out = {}
    for b in range(bands.step_images):
        for i in range(bands.step_bands):
            rows = [_split(bands, row(b, i, y)) for y in range(bands.window[0])]
            for j in range(bands.columns):
                out[b, i, j] = concatenate([parts[j] for parts in rows])
    return out


def _write(bands, results, out_refs, scratch):
    """The inverse of `_read`, for all results; where a step lies in two pieces of the map, by copies of our own."""
    seam = bands.shift[0] > 0
    if seam:
        buffer, semaphores = scratch
        group, step, images = (pl.program_id(axis) for axis in range(3))
        time, last = step * bands.grid[2] + images, bands.grid[1] * bands.grid[2] - 1
        slot = jax.lax.rem(time, 2)

        def copies(slot):
            """The copies of one step. Those of a finished step are awaited by others of the same size."""
            here, rows, shift = pl.ds(images * bands.step_images, bands.step_images), bands.rows, bands.shift[0]
            first = bands.heads.first_lane(group)
            lanes = pl.ds(pl.multiple_of(first, LANES) if bands.heads.steps > 1 else first, bands.heads.lanes)
            for n, out in enumerate(out_refs):
                below = jax.lax.rem(step + 1, bands.steps) * rows
                places = (pl.ds(step * rows + shift, rows - shift), pl.ds(below, shift))
                pieces = (pl.ds(0, rows - shift), pl.ds(rows - shift, shift))
                for part, (place, piece) in enumerate(zip(places, pieces, strict=True)):
                    source, target = buffer.at[slot, n, :, piece], out.at[here, place, :, lanes]
                    yield pltpu.make_async_copy(source, target, semaphores.at[slot, n, part])

        @pl.when(time >= 2)
        def _():
            for copy in copies(slot):
                copy.wait()

    for n, windows in enumerate(results):
        for b in range(bands.step_images):
            for i in range(bands.step_bands):
                for y in range(bands.window[0]):
                    place = slice(y * bands.window[1], (y + 1) * bands.window[1])
                    row = _join(bands, [windows[b, i, j][place] for j in range(bands.columns)])
                    if seam:
                        buffer[slot, n, b, i * bands.window[0] + y] = row
                    elif bands.dilation[0] == 1:
                        out_refs[n][b, i, y, 0] = row
                    else:
                        out_refs[n][b, 0, y, i] = row

    if seam:
        for copy in copies(slot):
            copy.start()

        @pl.when(time == last)
        def _():
            for finished in range(min(last + 1, 2)):
                for copy in copies(jax.lax.rem(time + finished, 2)):
                    copy.wait()


def _split(bands, row):
    """A row [W, lanes] of the map -> the part of each window in it, [w, lanes] each."""
    shift, w = bands.shift[1], bands.window[1]
    if bands.dilation[1] > 1:
        row = dot(_permutation(bands, row.dtype), row, ((1,), (0,))).astype(row.dtype)
    if shift:
        row = jnp.concatenate([row[shift:], row[:shift]], 0)
    return [row[j * w : (j + 1) * w] for j in range(bands.columns)]


def _join(bands, parts):
    """The inverse of `_split`."""
    row, shift = concatenate(parts), bands.shift[1]
    if shift:
        row = jnp.concatenate([row[-shift:], row[:-shift]], 0)
    if bands.dilation[1] > 1:
        row = dot(_permutation(bands, row.dtype), row, ((0,), (0,))).astype(row.dtype)
    return row


def _permutation(bands, dtype):
    """0 and 1, [W, W]: a product with it puts a row's columns in the order of dilated windows, and changes no value."""
    W, w, d = bands.size[1], bands.window[1], bands.dilation[1]
    place = jax.lax.broadcasted_iota(jnp.int32, (W, W), 0)  # (block, phase, token) of a window
    block, phase, token = jax.lax.div(place, w * d), jax.lax.div(jax.lax.rem(place, w * d), w), jax.lax.rem(place, w)
    column = block * (w * d) + token * d + phase
    return jnp.where(column == jax.lax.broadcasted_iota(jnp.int32, (W, W), 1), 1.0, 0.0).astype(dtype)
