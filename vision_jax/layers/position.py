"""Where a token lies: position embeddings."""

import functools

import numpy as np


@functools.cache
def sincos_2d(height, width, dim, temperature=10_000.0):
    """Fixed sine and cosine embeddings of a grid, [height * width, dim] (MoCo v3: Chen et al., 2021, arXiv:2104.02057).

    A quarter of the channels each holds sin and cos of the column and sin and cos of the row, at dim / 4 frequencies
    that fall geometrically from 1 to 1 / temperature.

    Args:
      height, width: the grid, in tokens.
      dim: channels, a multiple of 4.
      temperature: the lowest frequency's inverse.
    """
    frequencies = 1.0 / temperature ** np.linspace(0, 1, dim // 4)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    y, x = rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


@functools.cache
def relative_index(height, width):
    """The row of a table of relative positions for each query and key of a window, int32 [N, N] (Swin: arXiv:2103.14030).

    The table has (2 height - 1) (2 width - 1) rows, for the query's position minus the key's: rows from 1 - height to
    height - 1, and columns likewise within each.
    """
    y, x = (axis.reshape(-1) for axis in np.mgrid[:height, :width].astype(np.int32))
    return (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)
