"""Tables of positions at another input size: what a module's `resample(leaf, array)` calls when weights are loaded."""

import math

import jax
import numpy as np


def resample_positions(table, grid, prefix=0, method="bicubic", antialias=True):
    """Positions of a square grid of patches for another grid, [1, prefix + n * n, C] -> [1, prefix + h * w, C].

    By default bicubic with antialiasing (kernel parameter -0.5), as timm's `resample_abs_pos_embed`.

    Args:
      table: the table.
      grid: (h, w) wanted.
      prefix: number of leading tokens with positions of their own (class token, registers), which are kept.
      method, antialias: of `jax.image.resize`; "bilinear" without antialiasing is torch's plain `interpolate`.

    Returns:
      The new table, a numpy array; the table itself where its patches make no square.
    """
    table = np.asarray(table)
    side = math.isqrt(max(table.shape[1] - prefix, 0)) if table.ndim == 3 else 0
    if not side or prefix + side * side != table.shape[1]:
        return table
    patches = table[:, prefix:].astype(np.float32).reshape(1, side, side, -1)
    patches = jax.image.resize(patches, (1, *grid, patches.shape[-1]), method, antialias=antialias)
    patches = np.asarray(patches).reshape(1, math.prod(grid), -1)
    return np.concatenate([table[:, :prefix], patches.astype(table.dtype)], axis=1)
