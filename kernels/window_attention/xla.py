"""Window attention in plain JAX: partition, two products and a softmax, merge. Runs everywhere, takes every option."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vision_jax.mesh import local_shape, split_axes

SCORES = 2**30  # bytes of scores that a device holds at once; where there are more, windows are computed in groups


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


def partition_with_halo(x, window_size, halo):
    """[B, H, W, ...] -> [B, windows, tokens of a window and its halo, ...]; zeros (False) outside of the map."""
    for axis, window, pad in zip((1, 3), window_size, halo, strict=True):
        windows = x.shape[axis] // window
        x = jnp.pad(x, [(pad, pad) if n == axis else (0, 0) for n in range(x.ndim)])
        index = window * np.arange(windows)[:, None] + np.arange(window + 2 * pad)
        x = jnp.take(x, index, axis=axis)  # (windows, tokens) in the axis's place
    B, rows, h, columns, w, *rest = x.shape
    return x.swapaxes(2, 3).reshape(B, rows * columns, h * w, *rest)


@functools.cache
def seam_sides(size, window_size, shift, dilation):
    """int [windows, tokens]: on which side of the seams that the shift makes a token lies, 0 to 3."""
    sides = [np.arange(n) >= n - s for n, s in zip(size, shift, strict=True)]
    side = (2 * sides[0][:, None] + sides[1][None, :])[None]
    return np.asarray(partition(side, window_size, dilation))[0]


@functools.cache
def seam_mask(size, window_size, shift, dilation):
    """bool [windows, tokens, tokens]: True where query and key lie on one side of the seam that the shift makes."""
    side = seam_sides(size, window_size, shift, dilation)
    return side[:, :, None] == side[:, None, :]


def window_attention(
    q, k, v, *, window_size, shift, dilation, halo, border, bias, query_bias, key_mask, key_windows, scale
):  # fmt: skip
    """(output, log-sum-exp) as the public function gives them; the arguments are checked, pairs are made."""
    size, heads = k.shape[1:3], q.shape[3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    shared = not any(halo) and q.shape[1:3] != size
    stride = (1, 1) if shared else tuple(n // m for n, m in zip(size, q.shape[1:3], strict=True))
    query_window = tuple(w // s for w, s in zip(window_size, stride, strict=True))
    if any(shift):
        q = q if shared else jnp.roll(q, (-shift[0], -shift[1]), (1, 2))
        k, v = (jnp.roll(x, (-shift[0], -shift[1]), (1, 2)) for x in (k, v))
        key_mask = None if key_mask is None else jnp.roll(key_mask, (-shift[0], -shift[1]), (1, 2))

    # Everything below is [B, windows, tokens, ...].
    q = q.reshape(q.shape[0], 1, -1, *q.shape[3:]) if shared else partition(q, query_window, dilation)
    if any(halo):
        if border == "mask" and key_mask is None:
            key_mask = jnp.ones((1, *size), bool)
        k, v = (partition_with_halo(x, window_size, halo) for x in (k, v))
        if key_mask is not None:
            seen = key_mask if border == "mask" else ~key_mask
            seen = partition_with_halo(seen, window_size, halo)
            key_mask = seen if border == "mask" else ~seen  # beyond the border: False in one case, True in the other
    else:
        k, v = (partition(x, window_size, dilation) for x in (k, v))
        key_mask = None if key_mask is None else partition(key_mask, window_size, dilation)
    k, v = (x if x.shape[3] == heads else jnp.repeat(x, heads // x.shape[3], axis=3) for x in (k, v))
    q = jnp.broadcast_to(q, (q.shape[0], k.shape[1], *q.shape[2:])) if shared else q
    seam = jnp.asarray(seam_mask(size, window_size, shift, dilation))[None] if any(shift) else None
    scale = scale if jnp.ndim(scale) == 0 else jnp.asarray(scale, wide)[:, None, None]

    each = {"q": q, "routes": key_windows, "seam": seam}  # what has a dimension of windows
    if key_windows is None:
        each |= {"k": k, "v": v, "mask": key_mask}
    if bias is not None and bias.ndim == 4:
        each["bias"] = bias[None]
    each = {name: x for name, x in each.items() if x is not None}

    def attend(each):
        routed = (
            [_route(x, each["routes"]) if x is not None else None for x in (k, v, key_mask)] if "routes" in each else ()
        )
        keys, values, mask = routed or (each["k"], each["v"], each.get("mask"))
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", each["q"], keys, preferred_element_type=wide) * scale
        if query_bias is not None:
            scores = scores + _query_terms(each["q"], query_bias, query_window, wide)
        if bias is not None:
            scores = scores + each.get("bias", bias).astype(wide)
        if "seam" in each:
            scores = jnp.where(each["seam"][:, :, None], scores, -jnp.inf)
        if mask is not None:
            scores = jnp.where(mask[:, :, None, None], scores, -jnp.inf)
        lse = jax.nn.logsumexp(scores, axis=-1)  # -inf where a query sees no key
        probabilities = jnp.exp(scores - jnp.where(jnp.isneginf(lse), 0, lse)[..., None])
        return jnp.einsum("bwhqk,bwkhd->bwqhd", probabilities.astype(values.dtype), values), lse.swapaxes(2, 3)

    groups = _groups(q, k.shape[2] * (1 if key_windows is None else key_windows.shape[2]), wide)
    if groups == 1:
        out, lse = attend(each)
    else:  # the scores of one group at a time, and computed again for the gradient

        def split(x):
            return jnp.moveaxis(x.reshape(x.shape[0], groups, -1, *x.shape[2:]), 1, 0)

        def join(x):
            return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])

        out, lse = map(join, jax.lax.map(jax.checkpoint(attend), jax.tree.map(split, each)))
    out_size = size if shared else tuple(n // s for n, s in zip(size, stride, strict=True))
    out, lse = (merge(x, query_window, dilation, out_size) for x in (out, lse))
    return tuple(jnp.roll(x, shift, (1, 2)) for x in (out, lse)) if any(shift) else (out, lse)


def _groups(q, keys, dtype):
    """In how many groups the windows are computed: the fewest whose scores do not exceed `SCORES` on one device.

    Those of one image count where the program is exported for any batch.
    """
    B, windows, queries, heads, _ = q.shape
    B = 1 if export.is_symbolic_dim(B) else B
    names = ("batch", None, "heads", None, None)
    shape = (B, windows, heads, queries, keys)
    held = math.prod(local_shape(shape, names, split_axes({"batch": [B], "heads": [heads]}))) * dtype.itemsize
    return next(n for n in range(1, windows + 1) if windows % n == 0 and (held <= n * SCORES or n == windows))


def _route(x, routes):
    """Tokens of the windows that each window is routed to: [B, windows, N, ...], [B, w, n] -> [B, w, n * N, ...]."""
    x = jax.vmap(lambda x, routes: x[routes])(x, routes)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _query_terms(q, query_bias, query_window, dtype):
    """q . rows[y, key y] + q . columns[x, key x], [B, windows, heads, Nq, Nk]."""
    rows, columns = query_bias
    q = q.reshape(*q.shape[:2], *query_window, *q.shape[3:])
    rows = jnp.einsum("bwyxhd,ykd->bwhyxk", q, rows.astype(q.dtype), preferred_element_type=dtype)
    columns = jnp.einsum("bwyxhd,xkd->bwhyxk", q, columns.astype(q.dtype), preferred_element_type=dtype)
    out = rows[..., :, None] + columns[..., None, :]
    return out.reshape(*out.shape[:3], math.prod(query_window), -1)
