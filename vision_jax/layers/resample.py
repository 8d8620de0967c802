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
      method, antialias: of `jax.image.resize`; "bilinear" without antialiasing is torch's plain `interpolate`. Or a
        method (map [1, H, W, C], (h, w)) -> map [1, h, w, C], as those of `layers.interpolate`.

    Returns:
      The new table, a numpy array; the table itself where its patches make no square.
    """
    table = np.asarray(table)
    side = math.isqrt(max(table.shape[1] - prefix, 0)) if table.ndim == 3 else 0
    if not side or prefix + side * side != table.shape[1]:
        return table
    patches = resample_map(table[:, prefix:].reshape(1, side, side, -1), grid, method, antialias)
    return np.concatenate([table[:, :prefix], patches.reshape(1, math.prod(grid), -1)], axis=1)


def resample_map(table, grid, method="bicubic", antialias=True):
    """The same of positions that lie as a map, [1, H, W, C] -> [1, h, w, C]."""
    wide = np.asarray(table, np.float32)
    if callable(method):
        resized = method(wide, grid)
    else:
        resized = jax.image.resize(wide, (1, *grid, wide.shape[-1]), method, antialias=antialias)
    return np.asarray(resized).astype(table.dtype)


def resample_relative_bias(table, window_size):
    """A relative position bias table of a square window for another one, [(2n-1)^2, heads] -> [(2h-1) (2w-1), heads].

    Linear between positions that lie geometrically apart, dense at the centre, so that near offsets keep their values;
    beyond the last position its value holds. As timm's `resize_rel_pos_bias_table`, which follows BEiT's released code.

    Args:
      table: the table.
      window_size: (h, w) wanted.

    Returns:
      The new table, a numpy array; the table itself where it is of no square window.
    """
    table = np.asarray(table)
    side = math.isqrt(len(table)) if table.ndim == 2 else 0
    if side * side != len(table) or side % 2 == 0:
        return table
    rows, columns = (_geometric_weights(side, 2 * n - 1) for n in window_size)
    out = np.einsum("ys,xt,sth->yxh", rows, columns, table.reshape(side, side, -1))
    return out.reshape(-1, table.shape[1]).astype(table.dtype)


def _geometric_weights(old, new):
    """[new, old]: linear interpolation at -(new // 2) ... new // 2 between `old` positions geometrically apart.

    The positions are 0, +-1, +-(1 + q), +-(1 + q + q^2), ...; q between 1.01 and 1.5 is found by bisection, so that the
    last one is where the new table ends.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q ** (old // 2)) / (1 - q) > new // 2 else (q, high)
    steps = np.cumsum(q ** np.arange(old // 2))
    positions = np.concatenate([-steps[::-1], [0], steps])
    wanted = np.arange(-(new // 2), new // 2 + 1)
    return np.stack([np.interp(wanted, positions, column) for column in np.eye(old)], axis=1)
