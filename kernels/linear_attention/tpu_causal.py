"""Linear attention on TPU, the causal form: a Pallas kernel that carries the state from chunk to chunk on the chip.

In a chunk every pair of tokens is weighed; the tokens before it are one product with the state. Log decays of a pair
are added up by products with zeros and ones, never taken as the difference of two sums (see the XLA path). What
normalises a token is the sum of its weights in the chunk and the product with the keys before it, summed and decayed.

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
from vision_jax.kernels.linear_attention.channel_decays import ChannelDecays
from vision_jax.kernels.linear_attention.chunk_decays import HeadDecays
from vision_jax.kernels.packed_heads import HeadSum, head_scores

BY_CHANNEL = 176  # arrays of a chunk, float32, that the compilers were seen to hold at once where each channel decays


def linear_attention(q, k, v, log_decay, state, keys=None, *, chunks):
    """(output, state after all tokens, sum of the keys after them); what the layout does not return is None.

    Args:
      q, k, v: [B, N, heads, head_dim].
      log_decay: [B or 1, N, heads] or [B, N, heads, head_dim], or None.
      state: before the first token, [B, heads, head_dim, head_dim], or None.
      keys: the sum of the keys before it, [B, heads, head_dim], or None; for a layout that normalizes.
      chunks: the layout.
    """
    B, N, heads = q.shape[:3]
    if log_decay is not None and log_decay.ndim == 4:
        log_decay = log_decay.astype(jnp.float32).reshape(B, N, -1)
    elif log_decay is not None:
        # tokens on the lanes, as a score's columns are; what is padded decays nothing
        log_decay = jnp.pad(log_decay.astype(jnp.float32), ((0, 0), (0, chunks.padded - N), (0, 0)))
        log_decay = log_decay.transpose(0, 2, 1).reshape(len(log_decay), chunks.heads.steps, -1, chunks.padded)
    if state is not None:
        state = state.astype(jnp.float32).transpose(0, 2, 1, 3).reshape(B, -1, chunks.heads.channels)
    if keys is not None:
        keys = keys.astype(jnp.float32).reshape(B, 1, -1)
    flat = (x.reshape(B, N, chunks.heads.channels) for x in (q, k, v))
    out, state, keys = _attend(*flat, log_decay, state, keys, chunks)
    if state is not None:
        state = state.reshape(B, -1, heads, q.shape[-1]).transpose(0, 2, 1, 3)
    if keys is not None:
        keys = keys.reshape(B, heads, -1)
    return out.reshape(q.shape), state, keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, decay, state, keys, chunks):
    operands = dict(q=q, k=k, v=v, decay=decay, state=state, keys=keys)
    out = _call(_forward_kernel, operands, ["out", *_last(chunks)], chunks)
    return out["out"], out.get("last_state"), out.get("last_keys")


def _forward(q, k, v, decay, state, keys, chunks):
    operands = dict(q=q, k=k, v=v, decay=decay, state=state, keys=keys)
    before = ["all_states", *["all_keys"] * chunks.normalized]
    out = _call(_forward_kernel, operands, ["out", *_last(chunks), *before], chunks)
    kept = {name: out[name] for name in before}
    return (out["out"], out.get("last_state"), out.get("last_keys")), (operands, kept)


def _backward(chunks, residuals, gradients):
    operands, kept = residuals
    given = {name for name, x in operands.items() if x is not None}
    cotangents = dict(zip(("d_out", "d_last_state", "d_last_keys"), gradients, strict=True))
    results = ["dq", "dk", "dv", *(f"d_{name}" for name in ("decay", "state", "keys") if name in given)]
    inner = {name: operands[name] for name in ("q", "k", "v", "decay")}
    out = _call(_backward_kernel, inner | kept | cotangents, results, chunks)
    if "decay" in given and len(operands["decay"]) < chunks.batch:
        out["d_decay"] = out["d_decay"].sum(0, keepdims=True)
    return tuple(out.get(name) for name in ("dq", "dk", "dv", "d_decay", "d_state", "d_keys"))


_attend.defvjp(_forward, _backward)


def _last(chunks):
    return ["last_state", *["last_keys"] * chunks.normalized] if chunks.returns_state else []


def _call(kernel, operands, results, chunks):
    """A kernel over named tensors: {name: result}.

    Args:
      kernel: a function of (the layout, (step, chunk), {name: reference}); "now_state" and, where normalized,
        "now_keys" stay from step to step, and backward their gradients.
      operands: {name: array, or None where absent}.
      results: names.
      chunks: the layout.
    """
    operands = {name: x for name, x in operands.items() if x is not None}
    heads, q, backward = chunks.heads, operands["q"], "d_out" in operands
    B, N, C, dim = chunks.batch, chunks.tokens, heads.channels, heads.head_dim
    by_channel = "decay" in operands and operands["decay"].ndim == 3
    levels = chunks.size.bit_length() if by_channel else 1

    def at(step):
        return chunks.chunk(step, backward)

    tokens = pl.BlockSpec((1, chunks.size, heads.lanes), lambda group, image, step: (image, at(step), group))

    def spec(name):
        rows = 1 if name.endswith("keys") else dim
        if name in ("all_states", "all_keys"):
            return pl.BlockSpec((1, 1, rows, heads.lanes), lambda group, image, step: (image, at(step), 0, group))
        if name.endswith(("state", "keys")):
            return pl.BlockSpec((1, rows, heads.lanes), lambda group, image, step: (image, 0, group))
        if name.endswith("decay") and not by_channel:
            one = name == "decay" and len(operands["decay"]) == 1
            block = (1, 1, heads.in_step, chunks.size)
            return pl.BlockSpec(block, lambda group, image, step: (0 if one else image, group, 0, at(step)))
        return tokens

    def shape(name):
        rows = 1 if name.endswith("keys") else dim
        if name in ("all_states", "all_keys"):
            return (B, chunks.count, rows, C), jnp.float32
        if name.endswith(("state", "keys")):
            return (B, rows, C), jnp.float32
        if name == "d_decay":
            return (B, N, C) if by_channel else (B, heads.steps, heads.in_step, chunks.padded), jnp.float32
        return (B, N, C), q.dtype

    out_shape = [jax.ShapeDtypeStruct(*shape(name)) for name in results]
    held = {"now_state": packed_states.rows(heads)} | ({"now_keys": 1} if chunks.normalized else {})
    held |= {f"d_{name}": rows for name, rows in held.items()} if backward else {}

    def body(*refs):
        step = pl.program_id(2)
        kernel(chunks, (step, at(step)), dict(zip([*operands, *results, *held], refs, strict=True)))

    out = pl.pallas_call(
        body,
        grid=chunks.grid,
        in_specs=[spec(name) for name in operands],
        out_specs=[spec(name) for name in results],
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM((1, rows, heads.lanes), jnp.float32) for rows in held.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=limits.step_vmem(BY_CHANNEL * chunks.size * heads.padded * 4 if by_channel else 0),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * N * C * (chunks.size * levels + dim) * (5 if backward else 2),
            transcendentals=B * N * (C * levels if by_channel else chunks.size * heads.count * ("decay" in operands)),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands.values(), *out_shape)),
        ),
        interpret=dispatch.interpret(),
        name="causal_linear_attention_backward" if backward else "causal_linear_attention",
    )(*operands.values())
    return dict(zip(results, out, strict=True))


# One grid step, in VMEM. With a normalizer the result of a token is q S / (q . keys + epsilon).


def _forward_kernel(chunks, at, refs):
    (step, chunk), heads, state = at, chunks.heads, refs["now_state"]
    _start(heads, step, refs, "now_", "")
    if "all_states" in refs:
        refs["all_states"][0] = packed_states.stack(heads, state)
    q, k, v = (_tokens(chunks, chunk, refs[name]) for name in "qkv")
    decays = _decays(chunks, chunk, refs.get("decay"), q, k)
    out = HeadSum(heads)
    for head in range(heads.in_step):
        out.add(head, decays.weights(head).astype(v.dtype), v, ((2,), (1,)))
    out = out.value() + decays.read(state)
    if chunks.normalized:
        if "all_keys" in refs:
            refs["all_keys"][0] = refs["now_keys"][...]
        out = out * packed_states.spread(heads, _inverses(chunks, decays, refs["now_keys"][...]))
    refs["out"][...] = out.astype(q.dtype)
    _carry(heads, decays, refs, "now_", _scaled(k, decays.staying), v, _scaled(k, decays.staying))
    _finish(chunks, step, refs, "now_", "last_")


def _backward_kernel(chunks, at, refs):
    (step, chunk), heads = at, chunks.heads
    _start(heads, step, refs, "d_now_", "d_last_")
    state, d_state = refs["now_state"], refs["d_now_state"]
    packed_states.unstack(heads, refs["all_states"][0], state)
    q, k, v, d_out = (_tokens(chunks, chunk, refs[name]) for name in ("q", "k", "v", "d_out"))
    decays = _decays(chunks, chunk, refs.get("decay"), q, k)
    reading = decays.reading
    dk = packed_states.apply(heads, v, d_state, transposed=True)
    carried = decays.carried(state, d_state)
    if chunks.normalized:
        keys, d_keys = refs["all_keys"][0], refs["d_now_keys"][...]
        inverses = _inverses(chunks, decays, keys)
        reading = reading * packed_states.spread(heads, inverses)
        dk = dk + d_keys
        carried = carried + keys * d_keys * decays.kept
    dq = packed_states.apply(heads, d_out, state, transposed=True) * reading
    dk, dv = dk * decays.staying, HeadSum(heads)
    d_divisors = []
    for head in range(heads.in_step):
        weights, d_weights = decays.weights(head), head_scores(heads, d_out, v, head)
        share = weights
        if chunks.normalized:
            share, d_weights = weights * inverses[head], d_weights * inverses[head]
            held = (weights * d_weights).sum(2, keepdims=True)
            held = held + packed_states.own_sum(heads, head, q.astype(jnp.float32) * dq)
            d_divisors.append(-held * inverses[head])
            d_weights = d_weights + d_divisors[head]
        decays.pull(head, weights, d_weights)
        dv.add(head, share.astype(q.dtype), d_out, ((1,), (1,)))
    d_sums = None
    if chunks.normalized:
        by_keys = packed_states.spread(heads, d_divisors) * decays.reading
        dq, d_sums = dq + by_keys * keys, q.astype(jnp.float32) * by_keys
    near = decays.from_pairs()
    if "d_decay" in refs:
        decays.gradient(refs["d_decay"], q.astype(jnp.float32) * dq, k.astype(jnp.float32) * dk, carried)
    refs["dq"][...] = (near[0] + dq).astype(q.dtype)
    refs["dk"][...] = (near[1] + dk).astype(q.dtype)
    refs["dv"][...] = (dv.value() + decays.write(d_state)).astype(q.dtype)
    _carry(heads, decays, refs, "d_now_", _scaled(q, reading), d_out, d_sums)
    _finish(chunks, step, refs, "d_now_", "d_")


def _decays(chunks, chunk, ref, q, k):
    if ref is None or len(ref.shape) == 4:
        return HeadDecays(chunks, ref, q, k)
    return ChannelDecays(chunks, _tokens(chunks, chunk, ref), q, k)


def _inverses(chunks, decays, keys):
    """1 over the divisors of each head's tokens, [1, T, 1] each; `keys` are those before the chunk, summed."""
    far = decays.q.astype(jnp.float32) * keys * decays.reading
    return [
        packed_states.inverse(
            decays.weights(head).sum(2, keepdims=True) + packed_states.own_sum(chunks.heads, head, far) + chunks.epsilon
        )
        for head in range(chunks.heads.in_step)
    ]


def _start(heads, step, refs, held, given):
    """Before the first step: the given state, or zeros."""

    @pl.when(step == 0)
    def _():
        if f"{given}state" in refs:
            packed_states.unstack(heads, refs[f"{given}state"][...], refs[f"{held}state"])
        else:
            refs[f"{held}state"][...] = jnp.zeros_like(refs[f"{held}state"])
        if f"{held}keys" in refs:
            keys = refs[f"{held}keys"]
            keys[...] = refs[f"{given}keys"][...] if f"{given}keys" in refs else jnp.zeros_like(keys)


def _carry(heads, decays, refs, held, a, b, keys):
    """The state after a chunk: what it leaves of that before, and a^T b; of summed keys, the sum over tokens."""
    state = refs[f"{held}state"]
    decays.keep(state)
    packed_states.add(heads, state, a, b)
    packed_states.keep_own(heads, state)
    if f"{held}keys" in refs:
        sums = refs[f"{held}keys"]
        sums[...] = sums[...] * decays.kept + keys.astype(jnp.float32).sum(1, keepdims=True)


def _finish(chunks, step, refs, held, result):
    """After the last step: the state as a result, where that is asked for."""
    if f"{result}state" in refs:

        @pl.when(step == chunks.count - 1)
        def _():
            refs[f"{result}state"][...] = packed_states.stack(chunks.heads, refs[f"{held}state"])

    if f"{result}keys" in refs:

        @pl.when(step == chunks.count - 1)
        def _():
            refs[f"{result}keys"][...] = refs[f"{held}keys"][...]


def _scaled(x, factor):
    """x times a float32 factor, not rounded; x itself where that is 1."""
    return x if isinstance(factor, float) else x.astype(jnp.float32) * factor


def _tokens(chunks, chunk, ref):
    return packed_states.tokens(ref, chunk * chunks.size, chunks.tokens if chunks.has_tail else None)
