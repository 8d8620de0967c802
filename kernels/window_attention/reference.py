"""Window attention as it is defined: numpy loops over windows, heads, queries, keys. Slow; what others must equal."""

import itertools

import numpy as np


def window_attention(
    q, k, v, *, window_size, shift=(0, 0), dilation=(1, 1), halo=(0, 0), border="mask", bias=None, query_bias=None,
    key_mask=None, key_windows=None, scale=None,
):  # fmt: skip
    """The definition. Arguments are those of the public function, pairs already made; float64 inside.

    A window holds `window_size` tokens an axis, `dilation` apart. After a cyclic shift of the map by `-shift` the
    windows tile it; a query sees the keys of its window that lie on its side of the seam where the map was joined, and
    those up to `halo` tokens around it; or, of the windows that `key_windows` names, all keys.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (B, *size, key_heads, _), heads, d = k.shape, q.shape[3], q.shape[4]
    scale = np.broadcast_to(d**-0.5 if scale is None else np.asarray(scale, np.float64), (heads,))
    axes = [_windows(*args) for args in zip(size, window_size, shift, dilation, halo, strict=True)]
    windows = list(itertools.product(*axes))
    shared = halo == (0, 0) and q.shape[1:3] != (size[0], size[1])
    strides = (1, 1) if shared else tuple(n // m for n, m in zip(size, q.shape[1:3], strict=True))
    out_size = size if shared else q.shape[1:3]
    out = np.zeros((B, *out_size, heads, v.shape[-1]))
    lse = np.full((B, *out_size, heads), -np.inf)
    for b, h, (n, (rows, columns)) in itertools.product(range(B), range(heads), enumerate(windows)):
        # queries: every `stride`-th of the window's own tokens
        own = [
            axis[pad : len(axis) - pad : stride]
            for axis, pad, stride in zip((rows, columns), halo, strides, strict=True)
        ]
        places = itertools.product(*(list(enumerate(axis)) for axis in own))
        for i, ((a, (y, side_y)), (c, (x, side_x))) in enumerate(places):
            at = (b, y // strides[0], x // strides[1], h)
            query = q[b, a, c, h] if shared else q[at]
            seen = (n,) if key_windows is None else key_windows[b, n]
            scores, values = [], []
            for window in seen:
                for (e, (ky, key_y)), (f, (kx, key_x)) in itertools.product(
                    *map(list, map(enumerate, windows[window]))
                ):
                    j = len(scores)
                    inside = 0 <= ky < size[0] and 0 <= kx < size[1]
                    key, value = (
                        (array[b, ky, kx, h // (heads // key_heads)] if inside else np.zeros(array.shape[-1]))
                        for array in (k, v)
                    )
                    score = query @ key * scale[h]
                    if bias is not None:
                        score += bias[h, i, j] if np.ndim(bias) == 3 else bias[n, h, i, j]
                    if query_bias is not None:
                        score += query @ query_bias[0][a, e] + query @ query_bias[1][c, f]
                    if key_windows is None and (key_y, key_x) != (side_y, side_x):
                        score = -np.inf
                    if (not inside and border == "mask") or (
                        inside and key_mask is not None and not key_mask[b, ky, kx]
                    ):
                        score = -np.inf
                    scores.append(score)
                    values.append(value)
            if np.isneginf(scores).all():
                continue
            lse[at] = np.max(scores) + np.log(np.exp(scores - np.max(scores)).sum())
            out[at] = np.exp(scores - lse[at]) @ np.array(values)
    return out, lse


def _windows(size, window, shift, dilation, halo):
    """Along one axis: for each window the (position, side of the seam) of its tokens and of the halo around them."""
    span = window * dilation
    out = []
    for block, phase in itertools.product(range(size // span), range(dilation)):
        rolled = [block * span + token * dilation + phase for token in range(-halo, window + halo)]
        out.append([((r + shift) % size, r + shift >= size) if shift else (r, False) for r in rolled])
    return out
