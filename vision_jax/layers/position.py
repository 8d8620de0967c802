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
def fourier_2d(height, width, features, temperature=10_000.0):
    """Fixed sines and cosines of a grid, [height, width, 2 features]: the row's, then the column's (XCiT's code).

    An axis runs over one period from just above 0, whatever its length; sine and cosine take turns, at features / 2
    frequencies that fall geometrically (arXiv:2106.09681).
    """
    periods = temperature ** (2 * (np.arange(features) // 2) / features)
    axes = []
    for n in (height, width):
        angle = 2 * np.pi * np.arange(1, n + 1)[:, None] / (n + 1e-6) / periods
        axes.append(np.where(np.arange(features) % 2, np.cos(angle), np.sin(angle)))
    rows, columns = np.broadcast_arrays(axes[0][:, None], axes[1][None])
    return np.concatenate([rows, columns], axis=-1)


@functools.cache
def relative_index(height, width):
    """The row of a table of relative positions for each query and key, int32 [N, N] (Swin: arXiv:2103.14030).

    The table has (2 height - 1) (2 width - 1) rows, for the query's position minus the key's: rows from 1 - height to
    height - 1, and columns likewise within each.
    """
    y, x = (axis.reshape(-1) for axis in np.mgrid[:height, :width].astype(np.int32))
    return (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)


@functools.cache
def distance_index(height, width, stride=1):
    """The row of a table of distances for each query and key, int32 [Nq, Nk] (LeViT: arXiv:2104.01136).

    The table has height * width rows, for the absolute distances of the two along each axis. Queries are every
    `stride`-th pixel along each.
    """
    (y, x), queries = np.mgrid[:height, :width].astype(np.int32), np.s_[::stride, ::stride]
    rows, columns = (abs(axis[queries].reshape(-1, 1) - axis.reshape(-1)) for axis in (y, x))
    return rows * width + columns


@functools.cache
def log_spaced_offsets(height, width, reference):
    """Relative positions on a logarithmic scale, [2 height - 1, 2 width - 1, 2], in `relative_index`'s order.

    sign(d) log2(1 + 8 |d|), d in units of the window that the network was trained with, divided by log2(8) (Swin V2:
    arXiv:2111.09883, equation 4; its released code's constants).

    Args:
      height, width: the window, in tokens.
      reference: (height, width) of the window that it was trained with.
    """
    axes = [np.arange(1 - n, n) / max(r - 1, 1) for n, r in zip((height, width), reference, strict=True)]
    offsets = 8 * np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return np.sign(offsets) * np.log2(1 + np.abs(offsets)) / np.log2(8)
