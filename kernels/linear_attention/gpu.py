"""Linear attention on sm_90 GPUs, the form where every token sees all: Pallas Mosaic GPU kernels.

One kernel sums keys times values, one applies the sum to the queries; backward, the first runs again, one goes through
the queries and sums their share of the state's gradient, one gives keys and values theirs. Several heads of fewer than
64 channels are computed at once, their states on the diagonal of one. Between kernels lie states alone. Blocks write
sums of their own, which are added in a fixed order: results are the same from run to run. The operands are the only
residuals. Written against the interpreter and the lowering for an H200, before any run on one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.linear_attention.gpu_halves import apply, rounded_halves, wide
from vision_jax.kernels.linear_attention.gpu_tokens import Update, over_tokens
from vision_jax.kernels.linear_attention.packed_states import halves
from vision_jax.kernels.mosaic_gpu import columns, product


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def linear_attention(q, k, v, qn, kn, normalized, epsilon, layout):
    """q, k, v [B, N, heads, head_dim]; qn, kn of the same shape, or None where q and k normalise, if `normalized`."""
    tables, _ = _tables(layout, k, v, k if kn is None else kn, normalized)
    queries = [q] if qn is None else [q, qn]

    def step(tiles, tables, numbers, spare, sums):
        sum_, divisor = _read(tiles[0], tiles[-1], tables, epsilon)
        return [sum_ if divisor is None else sum_ * _inverse(divisor)], sums

    (out,), _ = over_tokens(layout, Update(step, 1, 0), queries, tables, products=len(tables), name="linear_attention")
    return out


def _forward(q, k, v, qn, kn, normalized, epsilon, layout):
    return linear_attention(q, k, v, qn, kn, normalized, epsilon, layout), (q, k, v, qn, kn)


def _backward(normalized, epsilon, layout, residuals, d_out):
    q, k, v, qn, kn = residuals
    tables, keys = _tables(layout, k, v, k if kn is None else kn, normalized)
    of_queries, numbers = [q, d_out] if qn is None else [q, d_out, qn], []
    if normalized:
        tables, numbers = [*tables, jnp.asarray(_same_head(layout), jnp.bfloat16)[None, None]], [keys]
        tables[-1] = jnp.broadcast_to(tables[-1], (1, layout.packs, ROWS, ROWS))

    def step(tiles, tables, numbers, spare, sums):
        q, d_out, qn = tiles[0], tiles[1], tiles[0] if len(tiles) < 3 else tiles[2]
        if not normalized:
            return [apply(d_out, tables, True)], [sums[0] + product(q, d_out, (True, False))]
        *states, ones = tables
        sum_, divisor = _read(q, qn, states, epsilon)
        inverse, d_result = _inverse(divisor), wide(d_out)
        spare[...] = (d_result * inverse).astype(jnp.bfloat16)
        plgpu.commit_smem()
        lost = [product(half, ones) for half in rounded_halves(d_result * sum_ * inverse)]
        d_divisor = -(lost[0] + lost[1]) * inverse
        d_q, d_qn = apply(spare, states[:2], True), d_divisor * columns(numbers[0], ROWS)
        sums = [sums[0] + product(q, spare, (True, False)), sums[1] + wide(qn) * d_divisor]
        return [d_q + d_qn] if len(tiles) < 3 else [d_q, d_qn], sums

    found, (d_state, *d_keys) = over_tokens(
        layout, Update(step, len(of_queries) - 1, 1 + normalized), of_queries, tables, numbers,
        products=4 + 4 * normalized, name="linear_attention_backward_queries",
    )  # fmt: skip
    d_keys = [x.sum(2) for x in d_keys]

    def step_of_keys(tiles, tables, numbers, spare, sums):
        k, v = tiles
        d_k = apply(v, tables, True)
        return [d_k + columns(numbers[0], ROWS) if numbers else d_k, apply(k, tables)], sums

    (dk, dv), _ = over_tokens(
        layout, Update(step_of_keys, 2, 0), [k, v], halves(_own(layout, d_state)), d_keys if kn is None else (),
        products=4, name="linear_attention_backward_keys",
    )  # fmt: skip
    dkn = None
    if kn is not None:
        dkn = jnp.broadcast_to(d_keys[0].reshape(kn.shape[0], 1, *kn.shape[2:]), kn.shape).astype(kn.dtype)
    return found[0], dk, dv, found[1] if qn is not None else None, dkn


linear_attention.defvjp(_forward, _backward)


def _tables(layout, k, v, kn, normalized):
    """(the state in two halves, and that to all values of one; the sum of the keys [B, packs, 64])."""

    def step(tiles, tables, numbers, spare, sums):
        return [], [sums[0] + product(tiles[0], tiles[1], (True, False))]

    _, (state,) = over_tokens(layout, Update(step, 0, 1), [k, v], products=1, name="linear_attention_state")
    tables, keys = list(halves(_own(layout, state))), None
    if normalized:
        keys = kn.astype(jnp.float32).sum(1).reshape(-1, layout.packs, ROWS)
        tables += halves(_own(layout, jnp.broadcast_to(keys[..., None], state.shape)))
    return tables, keys


def _same_head(layout):
    head = np.arange(ROWS) // layout.heads.head_dim
    return head[:, None] == head


def _own(layout, state):
    """A state without what lies between different heads."""
    return jnp.where(_same_head(layout), state, 0.0)


# Inside a block.


def _read(q, qn, tables, epsilon):
    """(what the queries read, their divisors in all lanes of a head or None)."""
    return apply(q, tables[:2]), apply(qn, tables[2:]) + epsilon if len(tables) > 2 else None


def _inverse(divisor):
    """1 / divisor, 0 where that is 0."""
    return jnp.where(divisor == 0, 0.0, 1 / jnp.where(divisor == 0, 1.0, divisor))
