"""Sliding windows of a channels-last map, side by side and put back (torch's Unfold and Fold)."""

import jax
import jax.numpy as jnp


def unfold(x, window, *, stride, padding):
    """Every window's pixels, [B, H, W, C] -> [B, H', W', window * window, C], row by row; zeros beyond the border."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w = ((n - window) // stride + 1 for n in x.shape[1:3])
    shifted = [
        x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
        for i in range(window)
        for j in range(window)
    ]
    return jnp.stack(shifted, axis=3)


def fold(x, size, window, *, stride, padding):
    """Windows added where they lie, [B, H', W', window * window, C] -> [B, *size, C]: the transpose of `unfold`."""
    total = 0.0
    for i in range(window):
        for j in range(window):
            # pixels `stride` apart, so many before the first and after the last; negative ones are cut off
            pads = []
            for offset, n, side in ((i, x.shape[1], size[0]), (j, x.shape[2], size[1])):
                low = offset - padding
                pads.append((low, side - low - stride * (n - 1) - 1, stride - 1))
            piece = x[:, :, :, i * window + j]
            total = total + jax.lax.pad(piece, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    return total
