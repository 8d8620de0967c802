"""Linear attention on TPU, the form where every token sees all: a Pallas kernel that goes through the tokens in phases.

A call sums keys times values over the tokens, then goes through the tokens again and applies the sum, which never
leaves the chip. The backward pass sums as the forward does, then reads the queries and sums their share of the state's
gradient, then gives keys and values theirs; the operands are the only residuals. Which blocks of a tensor a phase does
not use stay where they are, so that each tensor is read once forward, and backward keys and values twice. Rotated
queries and keys are made of the plain ones in each phase that needs them, and their gradients turned back.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, limits
from vision_jax.kernels.linear_attention import packed_states, rotary_tables


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def linear_attention(q, k, v, qn, kn, tables, normalized, epsilon, tiles):
    """q, k, v [B, N, heads, head_dim]; qn, kn of the same shape, or None where q and k normalise, if `normalized`.

    `tables`: of `rotary_tables.tables`, constants, by which q and k are turned where they do not normalise; or None.
    """
    phases = dict(k=(1, 0), v=(1, 0), kn=(1, 0), q=(0, 1), qn=(0, 1), out=(0, 1))
    operands = dict(k=k, v=v, kn=kn, q=q, qn=qn)
    return _call(_forward_kernel, phases, operands, dict(out=q), tables, normalized, epsilon, tiles)["out"]


def _forward(q, k, v, qn, kn, tables, normalized, epsilon, tiles):
    return linear_attention(q, k, v, qn, kn, tables, normalized, epsilon, tiles), (q, k, v, qn, kn, tables)


def _backward(normalized, epsilon, tiles, residuals, d_out):
    q, k, v, qn, kn, tables = residuals
    queries, keys = (0, 1, 0), (1, 0, 1)
    phases = dict(k=keys, v=keys, kn=(1, 0, 0), q=queries, qn=queries, d_out=queries)
    phases |= dict(dq=queries, dqn=queries, dk=(0, 0, 1), dv=(0, 0, 1), dkn=None)
    operands, results = dict(k=k, v=v, kn=kn, q=q, qn=qn, d_out=d_out), dict(dq=q, dqn=qn, dk=k, dv=v, dkn=kn)
    out = _call(_backward_kernel, phases, operands, results, tables, normalized, epsilon, tiles)
    if kn is not None:
        out["dkn"] = jnp.broadcast_to(out["dkn"], kn.shape).astype(kn.dtype)
    return *(out.get(name) for name in ("dq", "dk", "dv", "dqn", "dkn")), None


linear_attention.defvjp(_forward, _backward)


def _call(kernel, phases, operands, results, tables, normalized, epsilon, tiles):
    """A kernel over named tensors.

    Args:
      kernel: a function of (the layout, normalized, epsilon, (phase, tile), {name: reference}, scratch).
      phases: for each tensor in which phases it is used; None for a result of one row an image, float32.
      operands: {name: array, or None where absent}.
      results: {name: what it is shaped like, or None where absent}.
      tables, normalized, epsilon, tiles: as `linear_attention` takes them.

    Returns:
      {name: result}.
    """
    operands, results = ({name: x for name, x in given.items() if x is not None} for given in (operands, results))
    q, heads, backward = operands["q"], tiles.heads, "d_out" in operands
    B, N, C, count = tiles.batch, tiles.tokens, heads.channels, 3 if backward else 2
    row = pl.BlockSpec((tiles.step_images, 1, heads.lanes), lambda group, images, phase, tile: (images, 0, group))

    def spec(name):
        return pl.BlockSpec(tiles.block, tiles.block_index(phases[name])) if phases[name] else row

    def shape(name):
        return jax.ShapeDtypeStruct(*(((B, N, C), q.dtype) if phases[name] else ((B, 1, C), jnp.float32)))

    names, specs = list(operands), [spec(name) for name in operands]
    arrays = [x.reshape(B, N, C) for x in operands.values()]
    moved = sum(map(sum, [phases[name] or () for name in (*operands, *results)])) * q.nbytes
    if tables is not None:
        names, arrays = [*names, "rows", "columns"], [*arrays, *tables]
        specs.append(pl.BlockSpec((2, tiles.rows, 1, heads.lanes), lambda group, images, phase, tile: (0, tile, 0, 0)))
        specs.append(pl.BlockSpec((2, tiles.row, heads.lanes), lambda group, images, phase, tile: (0, 0, 0)))
        moved += tables[0].nbytes * math.prod(tiles.grid(count)[:3]) + tables[1].nbytes

    def body(*refs):
        at, count = (pl.program_id(2), pl.program_id(3)), len(names) + len(results)
        kernel(tiles, normalized, epsilon, at, dict(zip([*names, *results], refs, strict=False)), refs[count:])

    state = pltpu.VMEM((tiles.step_images, packed_states.rows(heads), heads.lanes), jnp.float32)
    total = pltpu.VMEM((tiles.step_images, 1, heads.lanes), jnp.float32)
    out = pl.pallas_call(
        body,
        grid=tiles.grid(count),
        in_specs=specs,
        out_specs=[spec(name) for name in results],
        out_shape=[shape(name) for name in results],
        scratch_shapes=[state, total] * (2 if backward else 1),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=limits.step_vmem(tiles.vmem(q.dtype.itemsize)),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * N * C * heads.head_dim * (6 if backward else 2),
            transcendentals=0,
            bytes_accessed=moved,
        ),
        interpret=dispatch.interpret(),
        name="linear_attention_backward" if backward else "linear_attention",
    )(*arrays)

    def heads_of(x):
        return x.reshape(*x.shape[:2], heads.count, heads.head_dim)

    return {name: heads_of(x) for name, x in zip(results, out, strict=True)}


# One grid step, in VMEM. `state` sums k v^T, and `total` sums what normalises over the keys, a row [n, 1, lanes].


def _forward_kernel(tiles, normalized, epsilon, at, refs, scratch):
    (phase, tile), (state, total) = at, scratch

    @pl.when(phase == 0)
    def _():
        _sum_keys(tiles, normalized, tile, refs, state, total)

    @pl.when(phase == 1)
    def _():
        q = refs["q"][...]
        out = packed_states.apply(tiles.heads, _turned(refs, q), state)
        if normalized:
            qn = refs["qn"][...] if "qn" in refs else q
            out = out * _inverse(tiles, qn, total, epsilon)
        refs["out"][...] = out.astype(q.dtype)


def _backward_kernel(tiles, normalized, epsilon, at, refs, scratch):
    (phase, tile), heads = at, tiles.heads
    state, total, d_state, d_total = scratch

    @pl.when(phase == 0)
    def _():
        _sum_keys(tiles, normalized, tile, refs, state, total)
        _clear(d_state, d_total)

    @pl.when(phase == 1)
    def _():
        plain, q, d_out = _tokens(tiles, tile, refs, "q", "turned q", "d_out")
        dq = packed_states.apply(heads, d_out, state, transposed=True)
        dqn = 0.0
        if not normalized:
            packed_states.add(heads, d_state, q, d_out)
        else:
            qn = _tokens(tiles, tile, refs, "qn")[0] if "qn" in refs else plain
            inverse = _inverse(tiles, qn, total, epsilon)
            dq = dq * inverse
            packed_states.add(heads, d_state, q.astype(jnp.float32) * inverse, d_out)
            # out = q S / divisor: the divisor's gradient is -(d_out . out) / divisor, of a head's channels
            d_divisor = -packed_states.head_sum(heads, dq * q.astype(jnp.float32), q.dtype) * inverse
            d_total[...] += jnp.sum(d_divisor * qn.astype(jnp.float32), 1, keepdims=True)
            dqn = d_divisor * total[...]
            if "dqn" in refs:
                refs["dqn"][...], dqn = dqn.astype(q.dtype), 0.0
        refs["dq"][...] = (_turned_back(refs, dq, q.dtype) + dqn).astype(q.dtype)

        @pl.when(tile == tiles.tiles - 1)
        def _():
            packed_states.keep_own(heads, d_state)
            if "dkn" in refs:
                refs["dkn"][...] = d_total[...]

    @pl.when(phase == 2)
    def _():
        k, v = refs["k"][...], refs["v"][...]
        dk = _turned_back(refs, packed_states.apply(heads, v, d_state, transposed=True), k.dtype)
        if normalized and "kn" not in refs:
            dk = dk + d_total[...]
        refs["dk"][...] = dk.astype(k.dtype)
        refs["dv"][...] = packed_states.apply(heads, _turned(refs, k), d_state).astype(k.dtype)


def _sum_keys(tiles, normalized, tile, refs, state, total):
    @pl.when(tile == 0)
    def _():
        _clear(state, total)

    plain, k, v = _tokens(tiles, tile, refs, "k", "turned k", "v")
    packed_states.add(tiles.heads, state, k, v)
    if normalized:
        kn = _tokens(tiles, tile, refs, "kn")[0] if "kn" in refs else plain
        total[...] += jnp.sum(kn.astype(jnp.float32), 1, keepdims=True)

    @pl.when(tile == tiles.tiles - 1)
    def _():
        packed_states.keep_own(tiles.heads, state)


def _inverse(tiles, qn, total, epsilon):
    """1 over each token's divisor, in all channels of its head; 0 where that is 0."""
    return packed_states.inverse(
        packed_states.head_sum(tiles.heads, qn.astype(jnp.float32) * total[...], qn.dtype) + epsilon
    )


def _tokens(tiles, tile, refs, *names):
    """Blocks of tensors, zero beyond the tokens, a list; "turned " before a name turns them."""
    first, count = tile * tiles.tile, tiles.tokens if tiles.has_tail else None
    found = []
    for name in names:
        x = refs[name.removeprefix("turned ")]
        found.append(packed_states.tokens(_turned(refs, x[...]) if name.startswith("turned ") else x, first, count))
    return found


def _turned(refs, x):
    return rotary_tables.turn(x, refs["rows"], refs["columns"]).astype(x.dtype) if "rows" in refs else x


def _turned_back(refs, gradient, dtype):
    return rotary_tables.turn_back(gradient, refs["rows"], refs["columns"], dtype) if "rows" in refs else gradient


def _clear(*refs):
    for ref in refs:
        ref[...] = jnp.zeros_like(ref)
