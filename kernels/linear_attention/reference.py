"""Linear attention as it is defined: a numpy loop over tokens. Slow; what others must equal."""

import numpy as np


def linear_attention(
    q, k, v, *, log_decay=None, causal=False, reverse=False, normalizer=None, rotary=None, epsilon=0.0,
    initial_state=None,
):  # fmt: skip
    """The definition. Arguments are those of the public function; float64 inside.

    Token by token the state, and with a normalizer the sum of its keys, is decayed and takes in the token; causally
    the token's query then reads it, otherwise all queries read it at the end.

    Returns:
      (output, state), the state a pair with a normalizer.
    """
    heads, spatial = q.shape[-2], q.shape[1:-2]
    qn, kn = (q, k) if normalizer in (None, True) else normalizer
    q, k = (x if rotary is None else _rotated(np.asarray(x, np.float64), rotary) for x in (q, k))
    q, k, v, qn, kn = (_tokens(x, heads) for x in (q, k, v, qn, kn))
    B, N, _, dim = q.shape
    decay = np.zeros((B, N, heads, dim)) if log_decay is None else np.asarray(log_decay, np.float64)
    decay = np.broadcast_to(decay if decay.ndim == 4 else decay[..., None], (B, N, heads, dim))
    sums, keys = np.zeros((B, heads, dim, v.shape[-1])), np.zeros((B, heads, dim))
    if initial_state is not None:
        sums, keys = (initial_state, keys) if normalizer is None else initial_state
        sums, keys = (np.array(x, np.float64) for x in (sums, keys))
    out, divisor = np.zeros((B, N, heads, v.shape[-1])), np.zeros((B, N, heads))
    for b in range(B):
        for h in range(heads):
            for n in reversed(range(N)) if reverse else range(N):
                kept = np.exp(decay[b, n, h])
                sums[b, h] = kept[:, None] * sums[b, h] + np.outer(k[b, n, h], v[b, n, h])
                keys[b, h] = kept * keys[b, h] + kn[b, n, h]
                out[b, n, h], divisor[b, n, h] = q[b, n, h] @ sums[b, h], qn[b, n, h] @ keys[b, h]
            for n in range(0 if causal else N):
                out[b, n, h], divisor[b, n, h] = q[b, n, h] @ sums[b, h], qn[b, n, h] @ keys[b, h]
    if normalizer is not None:
        divisor = (divisor + epsilon)[..., None]
        out = np.divide(out, divisor, out=np.zeros_like(out), where=divisor != 0)
    out = out.reshape(B, *spatial, heads, -1)
    return out, (sums if normalizer is None else (sums, keys))


def _rotated(x, rotary):
    """[B, *spatial, heads, head_dim]: a pair of channels is a complex number, times exp(i angle) of its axis."""
    pairs, first = x[..., 0::2] + 1j * x[..., 1::2], 0
    for axis, angles in enumerate(rotary):
        for place, turns in enumerate(np.exp(1j * np.asarray(angles))):
            np.moveaxis(pairs, 1 + axis, 0)[place][..., first : first + len(turns)] *= turns
        first += len(turns)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def _tokens(x, heads):
    """[B, *spatial, few heads, d] -> [B, N, heads, d]: each of the few serves neighbouring query heads."""
    x = np.asarray(x, np.float64)
    x = x.reshape(len(x), -1, *x.shape[-2:])
    return x[:, :, np.arange(heads) // (heads // x.shape[2])]
