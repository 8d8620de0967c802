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
