"""Window attention as it is defined: numpy loops over windows, heads, queries, keys. Slow; what others must equal."""

import numpy as np


def window_attention(q, k, v, *, window_size, shift=(0, 0), dilation=(1, 1), bias=None, key_mask=None, scale=None):
    """The definition. Arguments are those of the public function, pairs already made; float64 inside.

    A window holds `window_size` tokens an axis, `dilation` apart. After a cyclic shift of the map by `-shift` the
    windows tile it; a query sees the keys of its window that lie on its side of the seam where the map was joined.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, H, W, heads, d = q.shape
    scale = np.broadcast_to(d**-0.5 if scale is None else np.asarray(scale, np.float64), (heads,))
    out = np.zeros((B, H, W, heads, v.shape[-1]))
    lse = np.full((B, H, W, heads), -np.inf)
    windows = [_windows(n, w, s, g) for n, w, s, g in zip((H, W), window_size, shift, dilation, strict=True)]
    for b in range(B):
        for h in range(heads):
            for i, rows in enumerate(windows[0]):
                for j, columns in enumerate(windows[1]):
                    tokens = [(y, x, sy, sx) for y, sy in rows for x, sx in columns]
                    for n, (y, x, side_y, side_x) in enumerate(tokens):
                        scores = np.full(len(tokens), -np.inf)
                        for m, (ky, kx, key_y, key_x) in enumerate(tokens):
                            if (key_y, key_x) != (side_y, side_x):
                                continue
                            if key_mask is not None and not key_mask[b, ky, kx]:
                                continue
                            scores[m] = q[b, y, x, h] @ k[b, ky, kx, h // (heads // k.shape[3])] * scale[h]
                            if bias is not None:
                                window = i * len(windows[1]) + j
                                scores[m] += bias[h, n, m] if np.ndim(bias) == 3 else bias[window, h, n, m]
                        if np.isneginf(scores).all():
                            continue
                        top = scores.max()
                        weights = np.exp(scores - top)
                        lse[b, y, x, h] = top + np.log(weights.sum())
                        for m, (ky, kx, _, _) in enumerate(tokens):
                            out[b, y, x, h] += weights[m] / weights.sum() * v[b, ky, kx, h // (heads // v.shape[3])]
    return out, lse


def _windows(size, window, shift, dilation):
    """Along one axis: for each window the (position, side of the seam) of its tokens."""
    span = window * dilation
    out = []
    for block in range(size // span):
        for phase in range(dilation):
            rolled = [block * span + token * dilation + phase for token in range(window)]
            out.append([((r + shift) % size, r + shift >= size) for r in rolled])
    return out
