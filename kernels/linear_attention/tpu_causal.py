"""Linear attention on TPU, the causal form: a Pallas kernel that carries the state from chunk to chunk on the chip.

In a chunk every pair of tokens is weighed; the tokens before it are one product with the state. Log decays of a pair
are added up by a product with zeros and ones, never taken as the difference of two sums (see the XLA path).

Differentiated, the forward pass writes the state before each chunk, float32, of head_dim x channels: for heads of 32
half of q's bytes in bfloat16, O(tokens). The backward pass reads these and carries the state's gradient the other way.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, limits
from vision_jax.kernels.linear_attention import packed_states
from vision_jax.kernels.linear_attention.chunk_decays import Decays
from vision_jax.kernels.packed_heads import HeadSum, head_scores


def linear_attention(q, k, v, log_decay, state, chunks):
    """(output, state after all tokens or None).

    Args:
      q, k, v: [B, N, heads, head_dim].
      log_decay: [B or 1, N, heads], or None.
      state: before the first token, [B, heads, head_dim, head_dim], or None.
      chunks: the layout.
    """
    B, N, heads = q.shape[:3]
    if log_decay is not None:
        # tokens on the lanes, as a score's columns are; what is padded decays nothing
        log_decay = jnp.pad(log_decay.astype(jnp.float32), ((0, 0), (0, chunks.padded - N), (0, 0)))
        log_decay = log_decay.transpose(0, 2, 1).reshape(len(log_decay), chunks.heads.steps, -1, chunks.padded)
    if state is not None:
        state = state.astype(jnp.float32).transpose(0, 2, 1, 3).reshape(B, -1, chunks.heads.channels)
    flat = (x.reshape(B, N, chunks.heads.channels) for x in (q, k, v))
    out, state = _attend(*flat, log_decay, state, chunks)
    if state is not None:
        state = state.reshape(B, -1, heads, q.shape[-1]).transpose(0, 2, 1, 3)
    return out.reshape(q.shape), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, decay, state, chunks):
    out = _call(_forward_kernel, dict(q=q, k=k, v=v, decay=decay, state=state), ["out", "last"], chunks)
    return out["out"], out.get("last")


def _forward(q, k, v, decay, state, chunks):
    operands = dict(q=q, k=k, v=v, decay=decay, state=state)
    out = _call(_forward_kernel, operands, ["out", "last", "states"], chunks)
    return (out["out"], out.get("last")), (q, k, v, decay, state, out["states"])


def _backward(chunks, residuals, gradients):
    q, k, v, decay, state, states = residuals
    d_out, d_last = gradients
    operands = dict(q=q, k=k, v=v, decay=decay, states=states, d_out=d_out, d_last=d_last)
    results = ["dq", "dk", "dv", *["d_decay"] * (decay is not None), *["d_state"] * (state is not None)]
    out = _call(_backward_kernel, operands, results, chunks)
    if decay is not None and len(decay) < chunks.batch:
        out["d_decay"] = out["d_decay"].sum(0, keepdims=True)
    return tuple(out.get(name) for name in ("dq", "dk", "dv", "d_decay", "d_state"))


_attend.defvjp(_forward, _backward)


def _call(kernel, operands, results, chunks):
    """A kernel over named tensors: {name: result}.

    Args:
      kernel: a function of (the layout, (step, chunk), {name: reference}, scratch).
      operands: {name: array, or None where absent}.
      results: names; the last state is left out where the layout returns none.
      chunks: the layout.
    """
    operands = {name: x for name, x in operands.items() if x is not None}
    results = [name for name in results if name != "last" or chunks.returns_state]
    heads, q, backward = chunks.heads, operands["q"], "d_out" in operands
    B, N, C, dim = chunks.batch, chunks.tokens, heads.channels, heads.head_dim
    batch_of_decay = len(operands["decay"]) if "decay" in operands else 0
    of_decay = (heads.steps, heads.in_step, chunks.padded)

    def at(step):
        return chunks.chunk(step, backward)

    tokens = pl.BlockSpec((1, chunks.size, heads.lanes), lambda group, image, step: (image, at(step), group))
    once = pl.BlockSpec((1, dim, heads.lanes), lambda group, image, step: (image, 0, group))
    each = pl.BlockSpec((1, 1, dim, heads.lanes), lambda group, image, step: (image, at(step), 0, group))

    def decays(batch):
        block = (1, 1, heads.in_step, chunks.size)
        return pl.BlockSpec(block, lambda group, image, step: (image if batch > 1 else 0, group, 0, at(step)))

    special = dict(
        state=(once, (B, dim, C)), last=(once, (B, dim, C)), d_last=(once, (B, dim, C)), d_state=(once, (B, dim, C)),
        states=(each, (B, chunks.count, dim, C)), decay=(decays(batch_of_decay), (batch_of_decay, *of_decay)),
        d_decay=(decays(B), (B, *of_decay)),
    )  # fmt: skip

    def spec(name):
        return special[name][0] if name in special else tokens

    def shape(name):
        return (special[name][1], jnp.float32) if name in special else ((B, N, C), q.dtype)

    out_shape = [jax.ShapeDtypeStruct(*shape(name)) for name in results]

    def body(*refs):
        names, step = [*operands, *results], pl.program_id(2)
        kernel(chunks, (step, at(step)), dict(zip(names, refs, strict=False)), refs[len(names) :])

    state = pltpu.VMEM((1, packed_states.rows(heads), heads.lanes), jnp.float32)
    out = pl.pallas_call(
        body,
        grid=chunks.grid,
        in_specs=[spec(name) for name in operands],
        out_specs=[spec(name) for name in results],
        out_shape=out_shape,
        scratch_shapes=[state, state] if backward else [state],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=limits.step_vmem()
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * N * C * (chunks.size + dim) * (5 if backward else 2),
            transcendentals=B * N * chunks.size * heads.count if "decay" in operands else 0,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands.values(), *out_shape)),
        ),
        interpret=dispatch.interpret(),
        name="causal_linear_attention_backward" if backward else "causal_linear_attention",
    )(*operands.values())
    return dict(zip(results, out, strict=True))


# One grid step, in VMEM.


def _forward_kernel(chunks, at, refs, scratch):
    (step, chunk), (state,), heads = at, scratch, chunks.heads
    _start(heads, step, state, refs.get("state"))
    if "states" in refs:
        refs["states"][0] = packed_states.stack(heads, state)
    q, k, v = (_tokens(chunks, chunk, refs[name]) for name in "qkv")
    decays = Decays(chunks, refs.get("decay"), q.dtype)
    near = HeadSum(heads)
    for head in range(heads.in_step):
        (weights,) = decays.weighted(head, head_scores(heads, q, k, head))
        near.add(head, weights.astype(v.dtype), v, ((2,), (1,)))
    far = packed_states.apply(heads, q, state) * decays.reading()
    refs["out"][...] = (near.value() + far).astype(q.dtype)
    _carry(heads, decays, state, _scaled(k, decays.staying()), v)

    if "last" in refs:

        @pl.when(step == chunks.count - 1)
        def _():
            refs["last"][...] = packed_states.stack(heads, state)


def _backward_kernel(chunks, at, refs, scratch):
    (step, chunk), (state, d_state), heads = at, scratch, chunks.heads
    _start(heads, step, d_state, refs.get("d_last"))
    packed_states.unstack(heads, refs["states"][0], state)
    q, k, v, d_out = (_tokens(chunks, chunk, refs[name]) for name in ("q", "k", "v", "d_out"))
    decays = Decays(chunks, refs.get("decay"), q.dtype)
    reading, staying, kept = decays.reading(), decays.staying(), decays.kept()
    dq = packed_states.apply(heads, d_out, state, transposed=True) * reading
    dk = packed_states.apply(heads, v, d_state, transposed=True) * staying
    dv = packed_states.apply(heads, k, d_state) * staying
    reads, writes = q.astype(jnp.float32) * dq, k.astype(jnp.float32) * dk
    carried = packed_states.inner(heads, state, d_state) * kept
    sums = [HeadSum(heads) for _ in range(3)]
    for head in range(heads.in_step):
        scores, d_weights = head_scores(heads, q, k, head), head_scores(heads, d_out, v, head)
        weights, d_scores = decays.weighted(head, scores, d_weights)
        if "d_decay" in refs:
            own = [_own_sum(heads, head, x) for x in (reads, writes, carried)]
            refs["d_decay"][0, :, head, :] = decays.gradient(head, weights * d_weights, *own)[0]
        d_scores = d_scores.astype(q.dtype)
        sums[0].add(head, d_scores, k, ((2,), (1,)))
        sums[1].add(head, d_scores, q, ((1,), (1,)))
        sums[2].add(head, weights.astype(q.dtype), d_out, ((1,), (1,)))
    for name, near, far in zip(("dq", "dk", "dv"), sums, (dq, dk, dv), strict=True):
        refs[name][...] = (near.value() + far).astype(q.dtype)
    _carry(heads, decays, d_state, _scaled(q, reading), d_out)

    if "d_state" in refs:

        @pl.when(step == chunks.count - 1)
        def _():
            refs["d_state"][...] = packed_states.stack(heads, d_state)


def _start(heads, step, state, given):
    """Before the first step: the given state, or zeros."""

    @pl.when(step == 0)
    def _():
        if given is None:
            state[...] = jnp.zeros_like(state)
        else:
            packed_states.unstack(heads, given[...], state)


def _carry(heads, decays, state, a, b):
    """The state after a chunk: what it leaves of that before, and a^T b."""
    state[...] = state[...] * decays.kept()
    packed_states.add(heads, state, a, b)
    packed_states.keep_own(heads, state)


def _scaled(x, factor):
    """x times a float32 factor, not rounded; x itself where that is 1."""
    return x if isinstance(factor, float) else x.astype(jnp.float32) * factor


def _own_sum(heads, head, x):
    """The sum over one head's lanes, [1, n, lanes] -> [1, n, 1]."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 2)
    own = (lane >= head * heads.head_dim) & (lane < (head + 1) * heads.head_dim)
    return jnp.where(own, x, 0.0).sum(2, keepdims=True)


def _tokens(chunks, chunk, ref):
    return packed_states.tokens(ref, chunk * chunks.size, chunks.tokens if chunks.has_tail else None)
