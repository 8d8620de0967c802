"""States of heads that lie side by side in the lanes of a TPU's registers, for use inside a Pallas kernel.

The product of all keys' lanes with all values' lanes holds each head's state on its diagonal; the rest, where one
head's keys meet another's values, is put to zero. A product of the queries' lanes with that reads every head's own
state at once. Tensors are [n, N, lanes], of n images; states [n, rows, lanes] float32, one block of rows x rows for
each part of the lanes (a part is the least that holds whole registers and whole heads).
"""

import math

import jax
import jax.numpy as jnp
from vision_jax.kernels.packed_heads import LANES, dot, head_scores, transposed


def rows(heads):
    """Rows of a state."""
    return min(math.lcm(LANES, heads.head_dim), heads.lanes)


def tokens(ref, first, count):
    """A block of tokens that are to be summed, from `first` on.

    What lies beyond `count` tokens, where a block holds anything, is zero; None where the block does not reach there.
    """
    x = ref[...]
    if count is None:
        return x
    token = first + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(token < count, x.astype(jnp.float32), 0.0).astype(x.dtype)


def add(heads, state, a, b):
    """Adds a^T b over the tokens to a state in VMEM, other heads' products too, which `keep_own` removes."""
    for size, lanes in _parts(heads):
        state[:, :size, lanes] += product(a[:, :, lanes], b[:, :, lanes], ((1,), (1,)))


def keep_own(heads, state):
    """Puts to zero what lies between different heads."""
    for size, lanes in _parts(heads):
        state[:, :size, lanes] = jnp.where(_same_head(heads, size), state[:, :size, lanes], 0.0)


def apply(heads, a, state, transposed=False):
    """a times a state, [n, N, lanes] float32; or times its transpose."""
    contract = ((2,), (2 if transposed else 1,))
    return _concatenate(product(a[:, :, lanes], state[:, :size, lanes], contract) for size, lanes in _parts(heads))


def inner(heads, a, b):
    """The sum of a times b over the rows of two states, [n, 1, lanes]; a short part's unused rows hold anything."""
    parts = _parts(heads)
    return _concatenate((a[:, :size, lanes] * b[:, :size, lanes]).sum(1, keepdims=True) for size, lanes in parts)


def inner_rows(heads, a, b):
    """The sum of a times b over the lanes of two states that have nothing else, [n, 1, lanes]."""
    return _concatenate(
        transposed((a[:, :size, lanes] * b[:, :size, lanes]).sum(2, keepdims=True)) for size, lanes in _parts(heads)
    )


def scale_rows(heads, state, factor):
    """Multiplies the rows of a state in VMEM, the keys' channels, by a factor [n, 1, lanes]."""
    for size, lanes in _parts(heads):
        state[:, :size, lanes] = state[:, :size, lanes] * transposed(factor[:, :, lanes])


def head_sum(heads, x, dtype):
    """The sum of float32 x over each head's lanes, in all of these; at the precision that `dtype` needs."""

    def part(size, lanes):
        ones = jnp.where(_same_head(heads, size), 1.0, 0.0).astype(dtype)
        return product(x[:, :, lanes], jnp.broadcast_to(ones, (len(x), size, size)), ((2,), (1,)))

    return _concatenate(part(size, lanes) for size, lanes in _parts(heads))


def own_sum(heads, head, x):
    """The sum over one head's lanes, [1, n, lanes] -> [1, n, 1]."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 2)
    own = (lane >= head * heads.head_dim) & (lane < (head + 1) * heads.head_dim)
    return jnp.where(own, x, 0.0).sum(2, keepdims=True)


def spread(heads, columns):
    """A column of each head in all of its lanes, [1, n, 1] each -> [1, n, lanes]."""
    out, shape = columns[0], (1, columns[0].shape[1], heads.lanes)
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    for head, column in enumerate(columns[1:], 1):
        out = jnp.where(lane >= head * heads.head_dim, column, out)
    return jnp.broadcast_to(out, shape)


def inverse(divisor):
    """1 over a divisor, 0 where that is 0."""
    return jnp.where(divisor == 0, 0.0, 1.0 / jnp.where(divisor == 0, 1.0, divisor))


def product(a, b, contract):
    """A batched product in float32; a float32 operand beside one of bfloat16 is not rounded to that.

    It is taken in two halves of 8 bits each, so that two passes of the matrix unit see 16 of its 24: states sum many
    tokens, and rounding them once more would show in the result.
    """
    batch = ((0,), (0,))
    if a.dtype == b.dtype:
        return dot(a, b, contract, batch)
    if a.dtype == jnp.float32:
        return sum(dot(half, b, contract, batch) for half in halves(a))
    return sum(dot(a, half, contract, batch) for half in halves(b))


def scores(heads, a, b, head):
    """a b^T of one head, [n, N, lanes] and [n, M, lanes] -> [n, N, M]; a float32 is not rounded to b's bfloat16."""
    return sum(head_scores(heads, part, b, head) for part in ([a] if a.dtype == b.dtype else halves(a)))


def stack(heads, state):
    """The heads' own states [n, head_dim, lanes] of a state that has nothing else."""
    dim = heads.head_dim
    return _concatenate(
        sum(state[:, start : start + dim, lanes] for start in range(0, size, dim)) for size, lanes in _parts(heads)
    )


def unstack(heads, stacked, state):
    """The inverse of `stack`, into a state in VMEM."""
    for size, lanes in _parts(heads):
        state[:, :size, lanes] = jnp.concatenate([stacked[:, :, lanes]] * (size // heads.head_dim), 1)
    keep_own(heads, state)


def halves(x):
    """By bits: rounding to bfloat16 and back is what a compiler may take for nothing."""
    high = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -(2**16), jnp.float32)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def _parts(heads):
    """[(rows, lanes as a slice)] of a state."""
    starts = range(0, heads.lanes, rows(heads))
    stops = (min(start + rows(heads), heads.lanes) for start in starts)
    return [(stop - start, slice(start, stop)) for start, stop in zip(starts, stops, strict=True)]


def _same_head(heads, size):
    """bool [1, size, size]."""
    head = [jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (1, size, size), axis), heads.head_dim) for axis in (1, 2)]
    return head[0] == head[1]


def _concatenate(parts):
    parts = list(parts)
    return jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
