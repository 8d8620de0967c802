"""Causal linear attention on sm_90 GPUs: Pallas Mosaic GPU kernels that carry the state through the tokens.

A block takes one image and the 64 channels of one head or of several side by side, and goes through tiles of 64 tokens:
in a tile every pair is weighed, the tokens before it are one product with the state. Training keeps the state before
each tile, in two halves of bfloat16: twice a map's bytes. The backward pass goes through the tiles from the last to the
first, with the gradient of the state. Blocks share no sum: results are the same from run to run. There are no more
blocks than images times packs of heads. Written against the interpreter and the lowering for an H200, before any run.
"""

import functools

import jax
import jax.numpy as jnp
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.linear_attention.gpu_carry import Update, over_tiles
from vision_jax.kernels.linear_attention.gpu_halves import apply, wide
from vision_jax.kernels.mosaic_gpu import LOG2E, columns, laid, product, rows

LEAST = -128.0  # bits that a token decays by: 2^-128 is nothing beside 1, and sums of 64 such differ exactly enough
NEVER = -1e30  # bits: for tokens that follow


def linear_attention(q, k, v, log_decay, state, *, layout, reverse):
    """(output, state after all tokens).

    Args:
      q, k, v: [B, N, heads, head_dim] bfloat16.
      log_decay: [B or 1, N, heads], or None.
      state: before the first token, [B, heads, head_dim, head_dim], or None.
      layout: a `head_packs.HeadPacks`.
      reverse: from the last token to the first, whose order is turned round before and after: copies.
    """
    B, N, heads, d = q.shape
    if log_decay is None:
        log_decay = jnp.zeros((1, N, heads))
    if reverse:
        q, k, v, log_decay = (jnp.flip(x, 1) for x in (q, k, v, log_decay))
    if state is None:
        state = jnp.zeros((B, heads, d, d))
    more = layout.tiles * ROWS - N
    q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).reshape(B, -1, heads * d) for x in (q, k, v))
    decay = jnp.maximum(log_decay.astype(jnp.float32) * LOG2E, LEAST)
    decay = jnp.pad(decay, ((0, 0), (0, more), (0, 0))).transpose(0, 2, 1).reshape(-1, heads, layout.tiles, ROWS)
    out, last = _attend(q, k, v, decay, _packed(layout, state.astype(jnp.float32)), layout)
    out = out.reshape(B, -1, heads, d)[:, :N]
    return jnp.flip(out, 1) if reverse else out, _unpacked(layout, last)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, decay, state, layout):
    """(output, last state); operands as `over_tiles` has them."""
    (out,), last, _, _ = over_tiles(layout, FORWARD, [q, k, v], decay, state, keeps=False, name=NAME)
    return out, last


def _forward(q, k, v, decay, state, layout):
    (out,), last, states, _ = over_tiles(layout, FORWARD, [q, k, v], decay, state, keeps=True, name=NAME)
    return (out, last), (q, k, v, decay, states)


def _backward(layout, residuals, gradients):
    q, k, v, decay, states = residuals
    d_out, d_last = gradients
    maps, d_state, _, (numbers,) = over_tiles(
        layout, BACKWARD, [q, k, v, d_out], decay, d_last, states, keeps=False, name=f"{NAME}_backward"
    )
    # A token's decay lies on what it and those after it read of all before, on what those before it leave to the tiles
    # that follow, and on what the tile lets pass.
    n, B = layout.per_pack, len(q)
    reads, writes = (numbers[..., i * n : (i + 1) * n, :] for i in range(2))
    after = jnp.flip(jnp.cumsum(jnp.flip(reads, -1), -1), -1)
    before = jnp.cumsum(writes, -1) - writes
    passed = numbers[..., 2 * n, :].reshape(B, layout.packs, layout.tiles, n, -1).sum(-1, keepdims=True)
    d_decay = (after + before + passed).transpose(0, 1, 3, 2, 4).reshape(B, *decay.shape[1:]) / LOG2E
    return *maps, d_decay if len(decay) == B else d_decay.sum(0, keepdims=True), d_state


_attend.defvjp(_forward, _backward)


def _packed(layout, state):
    """[B, heads, d, d] -> [B * packs * 64, 64], heads on the diagonal."""
    B, _, d, _ = state.shape
    n = layout.per_pack
    x = state.reshape(B, layout.packs, n, d, 1, d) * jnp.eye(n)[:, None, :, None]
    return x.reshape(-1, ROWS)


def _unpacked(layout, x):
    """The inverse, of a state with anything beside the diagonal."""
    n, d = layout.per_pack, layout.heads.head_dim
    x = x.reshape(layout.batch, layout.packs, n, d, n, d)
    return jnp.einsum("bphihj->bphij", x).reshape(layout.batch, -1, d, d)


# Inside a block: one head of one tile.


def _forward_step(tensors, state, decays):
    q, k, v = tensors
    weights = product(q, k, (False, True)) * _between(decays, False)
    far = apply(q, state) * _factor(decays.since, v)
    return [far + product(weights.astype(jnp.bfloat16), v)], []


def _backward_step(tensors, states, decays):
    q, k, v, d_out = tensors
    d_state, state = states[:2], states[2:]
    staying = _factor(decays.until, k)
    far_q, far_k = apply(d_out, state, True) * _factor(decays.since, q), apply(v, d_state, True) * staying
    far_v = apply(k, d_state) * staying
    scores = product(q, k, (False, True))
    d_scores = product(d_out, v, (False, True)) * _between(decays, False)
    reads = jnp.sum(scores * d_scores, 1) + jnp.sum(wide(q) * far_q, 1)
    d_q = far_q + product(d_scores.astype(jnp.bfloat16), k)
    # the same by keys, because a product takes no transpose from registers
    kept = _between(decays, True)
    scores = product(k, q, (False, True))
    d_scores = product(v, d_out, (False, True)) * kept
    reads = reads - jnp.sum(scores * d_scores, 1)
    d_k = far_k + product(d_scores.astype(jnp.bfloat16), q)
    d_v = far_v + product((scores * kept).astype(jnp.bfloat16), d_out)
    return [d_q, d_k, d_v], [reads, jnp.sum(wide(k) * far_k, 1)]


def _factor(ref, like):
    """What sums of bits leave of rows [64, like's columns]."""
    return rows(jnp.exp2(laid(ref[...], 1)), like.shape[1])


def _between(decays, by_keys):
    """What a query's token leaves of a key's, 0 where that follows: [64 queries, 64 keys], or keys by queries."""
    of_row, of_column = rows(laid(decays.since[...], 1), ROWS), columns(laid(decays.again[...], 0), ROWS)
    row, column = (laid(jax.lax.broadcasted_iota(jnp.int32, (ROWS, ROWS), axis)) for axis in (0, 1))
    seen, bits = (column >= row, of_column - of_row) if by_keys else (row >= column, of_row - of_column)
    return jnp.exp2(jnp.where(seen, bits, NEVER))


NAME = "causal_linear_attention"
FORWARD = Update(_forward_step, results=1, numbers=0, taken=(1, 2), backward=False)  # keys, values
BACKWARD = Update(_backward_step, results=3, numbers=2, taken=(0, 3), backward=True)  # queries, the result's gradient
