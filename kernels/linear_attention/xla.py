"""Linear attention in plain JAX: one product with the state, or chunks of tokens under a scan. Runs everywhere.

Decays lie between two tokens or between a token and an end of its chunk. Their logarithms are added up for each such
stretch, never taken as the difference of two sums: what is exponentiated is at most 0 and nothing cancels, however
strong the decay. The backward pass keeps the state before each chunk and recomputes the chunk.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 128  # tokens whose pairs are formed at once
BLOCK = 16  # of these, tokens whose pairs are decayed channel by channel


def linear_attention(q, k, v, *, log_decay, causal, reverse, normalizer, epsilon, initial_state, chunk_size):
    """(output [B, *spatial, heads, Dv], state); the arguments are those of the public function, checked."""
    shape, heads, dtype = q.shape, q.shape[-2], v.dtype
    wide = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    qn, kn = normalizer if isinstance(normalizer, (tuple, list)) else (None, None)
    q, k, v, qn, kn = (x if x is None else _tokens(x, heads) for x in (q, k, v, qn, kn))
    attend = functools.partial(_all, wide=wide)
    if causal:
        decay = _decay(log_decay, q.shape, wide)
        attend = functools.partial(
            _causal, decay=decay, reverse=reverse, chunk_size=chunk_size or CHUNK,
            dtype=dtype if normalizer is None else wide, wide=wide,
        )  # fmt: skip
    sums, keys = (initial_state, None) if normalizer is None else (initial_state or (None, None))
    if normalizer is None:
        out, state = attend(q, k, v, sums)
    else:
        # the divisor is attention too, to values that are all one
        one = jnp.ones((*v.shape[:-1], 1), v.dtype)
        keys = None if keys is None else keys[..., None]
        if normalizer is True:
            both = None if sums is None else jnp.concatenate([sums.astype(wide), keys.astype(wide)], axis=-1)
            out, both = attend(q, k, jnp.concatenate([v, one], axis=-1), both)
            (out, divisor), (sums, keys) = (jnp.split(x, [v.shape[-1]], axis=-1) for x in (out, both))
        else:
            out, sums = attend(q, k, v, sums)
            divisor, keys = attend(qn, kn, one, keys)
        divisor = divisor + epsilon
        out = jnp.where(divisor == 0, 0, out / jnp.where(divisor == 0, 1, divisor))
        state = (sums, keys[..., 0])
    return out.astype(dtype).reshape(*shape[:-1], v.shape[-1]), state


def _tokens(x, heads):
    """[B, *spatial, few heads, D] -> [B, N, heads, D]."""
    x = x.reshape(x.shape[0], -1, *x.shape[-2:])
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def _decay(log_decay, shape, wide):
    """[B or 1, N, heads, Dk or 1], or None."""
    if log_decay is None:
        return None
    decay = jnp.asarray(log_decay, wide)
    if decay.ndim == 1:
        return jnp.broadcast_to(decay[:, None], (1, *shape[1:3], 1))
    return decay if decay.ndim == 4 else decay[..., None]


def _all(q, k, v, state, *, wide):
    """Every token sees every token: (output [B, N, heads, Dv], state [B, heads, Dk, Dv]), both wide."""
    total = jnp.einsum("bnhd,bnhe->bhde", k, v, preferred_element_type=wide)
    state = total if state is None else state + total
    return jnp.einsum("bnhd,bhde->bnhe", q, state), state


def _causal(q, k, v, state, *, decay, reverse, chunk_size, dtype, wide):
    """Every token sees those before it and itself: (output in `dtype`, state)."""
    B, N, heads, _ = q.shape
    if reverse:
        q, k, v, decay = (x if x is None else jnp.flip(x, 1) for x in (q, k, v, decay))
    count = -(-N // chunk_size)
    size = -(-N // count)  # chunks of one size
    if decay is not None and decay.shape[-1] > 1 and size > BLOCK:
        size = -(-size // BLOCK) * BLOCK

    def chunks(x):  # [B, N, heads, D] -> [count, B, heads, size, D]; what is padded adds nothing and decays nothing
        x = jnp.pad(x, ((0, 0), (0, count * size - N), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], count, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)

    if state is None:
        state = jnp.zeros((B, heads, k.shape[-1], v.shape[-1]), wide)
    # XLA for CPU (JAX 0.10 to 0.12) gives wrong numbers where it fuses the reading of a state that it knows to be zeros
    # with the chunk's own product; behind a barrier it does not know
    state = jax.lax.optimization_barrier(state.astype(wide))
    operands = tuple(x if x is None else chunks(x) for x in (q, k, v, decay))
    body = jax.checkpoint(functools.partial(_chunk, dtype=dtype), prevent_cse=False)
    state, out = jax.lax.scan(body, state, operands)
    out = out.transpose(1, 0, 3, 2, 4).reshape(B, count * size, heads, -1)[:, :N]
    return (jnp.flip(out, 1) if reverse else out), state


def _chunk(state, operands, *, dtype):
    """One chunk: (the state after it, its output); operands [B, heads, C, D], decay [B or 1, heads, C, Dk or 1]."""
    q, k, v, decay = operands
    wide = state.dtype
    weights = _weights(q, k, decay, wide)
    out = jnp.einsum("...ij,...je->...ie", weights.astype(v.dtype), v, preferred_element_type=wide)
    if decay is not None:
        after = jnp.pad(decay[..., 1:, :], ((0, 0), (0, 0), (0, 1), (0, 0)))
        q = q * jnp.exp(jnp.cumsum(decay, axis=-2))
        k = k * jnp.exp(jax.lax.cumsum(after, axis=2, reverse=True))
    out = out + jnp.einsum("...id,...de->...ie", q, state)
    added = jnp.einsum("...jd,...je->...de", k, v, preferred_element_type=wide)
    if decay is not None:
        state = state * jnp.exp(decay.sum(axis=-2))[..., None]
    return state + added, out.astype(dtype)


def _weights(q, k, decay, wide):
    """q_i . k_j, decayed from j to i, 0 where j follows i: [..., C, Dk] -> [..., C, C]."""
    if decay is not None and decay.shape[-1] > 1:
        return _decayed_by_channel(q, k, decay)
    weights = jnp.einsum("...id,...jd->...ij", q, k, preferred_element_type=wide)
    return jnp.tril(weights) if decay is None else weights * jnp.exp(_between(decay))[..., 0]


def _between(decay):
    """The sum of log decays after token j up to token i, -inf where j follows i: [..., C, D] -> [..., C, C, D]."""
    i, j = np.ogrid[: decay.shape[-2], : decay.shape[-2]]
    steps = jnp.where((i > j)[..., None], decay[..., :, None, :], 0)
    return jnp.where((i >= j)[..., None], jnp.cumsum(steps, axis=-3), -jnp.inf)


def _decayed_by_channel(q, k, decay):
    """The weights where each channel decays by itself (gated attention: arXiv:2312.06635, section 4.3).

    Within a block of tokens every pair is decayed channel by channel. From block to block the decay is split into what
    lies before the end of the key's block, whole blocks, and what lies in the query's: products of matrices again.
    """
    *lead, size, _ = q.shape
    block = min(size, BLOCK)
    q, k, decay = (x.reshape(*x.shape[:-2], size // block, block, x.shape[-1]) for x in (q, k, decay))
    near = (q[..., :, None, :] * k[..., None, :, :] * jnp.exp(_between(decay))).sum(-1)
    if block == size:
        return near.reshape(*lead, size, size)
    none = [(0, 0)] * len(lead)
    after = jnp.pad(decay[..., 1:, :], (*none, (0, 0), (0, 1), (0, 0)))
    q = q * jnp.exp(jnp.cumsum(decay, axis=-2))
    k = k * jnp.exp(jax.lax.cumsum(after, axis=after.ndim - 2, reverse=True))
    # between blocks r < s: the decay of the blocks after r up to s - 1
    whole = jnp.pad(jnp.exp(_between(decay.sum(-2)))[..., :-1, :, :], (*none, (1, 0), (0, 0), (0, 0)))
    far = jnp.einsum("...srid,...rjd->...sirj", q[..., :, None, :, :] * whole[..., None, :], k)
    same = np.eye(size // block, dtype=bool)[:, None, :, None]
    return jnp.where(same, near[..., :, :, None, :], far).reshape(*lead, size, size)
