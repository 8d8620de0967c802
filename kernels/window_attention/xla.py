"""Window attention in plain JAX: partition, two products and a softmax, merge. Runs everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def partition(x, window_size, dilation):
    """[B, H, W, ...] -> [B, windows, window tokens, ...]; windows row by row, those of one block by their phase."""
    B, H, W, *rest = x.shape
    (h, w), (dh, dw) = window_size, dilation
    x = x.reshape(B, H // (h * dh), h, dh, W // (w * dw), w, dw, *rest)
    x = x.transpose(0, 1, 3, 4, 6, 2, 5, *range(7, x.ndim))
    return x.reshape(B, H * W // (h * w), h * w, *rest)


def merge(x, window_size, dilation, size):
    """The inverse of `partition` for a map of size (H, W)."""
    B, _, _, *rest = x.shape
    (H, W), (h, w), (dh, dw) = size, window_size, dilation
    x = x.reshape(B, H // (h * dh), dh, W // (w * dw), dw, h, w, *rest)
    x = x.transpose(0, 1, 5, 2, 3, 6, 4, *range(7, x.ndim))
    return x.reshape(B, H, W, *rest)


@functools.cache
def seam_mask(size, window_size, shift, dilation):
    """bool [windows, tokens, tokens]: True where query and key lie on one side of the seam that the shift makes."""
    sides = [np.arange(n) >= n - s for n, s in zip(size, shift, strict=True)]
    side = (2 * sides[0][:, None] + sides[1][None, :])[None]
    side = np.asarray(partition(side, window_size, dilation))[0]
    return side[:, :, None] == side[:, None, :]


def window_attention(q, k, v, *, window_size, shift, dilation, bias, key_mask, scale):
    """(output [B, H, W, heads, Dv], log-sum-exp [B, H, W, heads]); the arguments are checked, pairs are made."""
    size, heads = q.shape[1:3], q.shape[3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if any(shift):
        q, k, v = (jnp.roll(x, (-shift[0], -shift[1]), (1, 2)) for x in (q, k, v))
    q, k, v = (partition(x, window_size, dilation) for x in (q, k, v))
    k, v = (x if x.shape[3] == heads else jnp.repeat(x, heads // x.shape[3], axis=3) for x in (k, v))
    scores = jnp.einsum("bwqhd,bwkhd->bwhqk", q, k, preferred_element_type=wide)
    scores = scores * (scale if jnp.ndim(scale) == 0 else jnp.asarray(scale, wide)[:, None, None])
    if bias is not None:
        scores = scores + bias.astype(wide)
    if any(shift):
        allowed = seam_mask(size, window_size, shift, dilation)[None, :, None]
        scores = jnp.where(allowed, scores, -jnp.inf)
    if key_mask is not None:
        keys = partition(jnp.roll(key_mask, (-shift[0], -shift[1]), (1, 2)), window_size, dilation)
        scores = jnp.where(keys[:, :, None, None], scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)  # -inf where a query sees no key
    probabilities = jnp.exp(scores - jnp.where(jnp.isneginf(lse), 0, lse)[..., None])
    out = jnp.einsum("bwhqk,bwkhd->bwqhd", probabilities.astype(v.dtype), v)
    out, lse = (merge(x, window_size, dilation, size) for x in (out, lse.swapaxes(2, 3)))
    return tuple(jnp.roll(x, shift, (1, 2)) for x in (out, lse)) if any(shift) else (out, lse)
