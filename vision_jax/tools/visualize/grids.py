"""How the tokens of a layer lie on the image."""

import math

import numpy as np

from vision_jax.errors import InputError


def grid_of(model, name, tokens, size):
    """((rows, columns), tokens before them) of a layer's tokens, or None where they do not cover the image so.

    Args:
      model: the model.
      name: the layer's, "stages.1.blocks.0.attn": a stage's map has the stage's reduction.
      tokens: how many there are.
      size: (height, width) of the images, in pixels.
    """
    grid = getattr(model, "grid", None)
    if grid is None:
        stage = next((info for info in model.feature_info if name.startswith(f"{info.name}.")), None)
        if stage is None:
            return None
        grid = tuple(-(-side // stage.reduction) for side in size)
    prefix = tokens - math.prod(grid)
    return (tuple(grid), prefix) if prefix in {0, 1, getattr(model, "prefix", 0)} else None


def check_unrolled(model):
    """Raises `InputError` where blocks are scanned: pictures need each by its own name."""
    if getattr(model.config, "scan_blocks", False):
        raise InputError("scan_blocks=True: pictures need unrolled blocks, into which the same weights load: set False")


def in_order(names):
    """Dotted names with their numbers in order: blocks.2 before blocks.10."""
    return sorted(names, key=lambda name: [(len(part), part) for part in name.split(".")])


def cell(place, grid):
    """The (row, column) of a grid in which a place of the image lies, (down, right) in 0..1."""
    return tuple(min(int(part * side), side - 1) for part, side in zip(place, grid, strict=True))


def as_map(features, grid):
    """Features of tokens [B, prefix + N, C] or of a map [B, H, W, C] -> [B, rows, columns, C], numpy or JAX."""
    if features.ndim == 4:
        return features
    prefix = features.shape[1] - math.prod(grid)
    if prefix < 0:
        raise InputError(f"{features.shape[1]} tokens do not fill a map of {grid}")
    return features[:, prefix:].reshape(len(features), *grid, -1)


def nearest(values, size):
    """A map [rows, columns] at another size (height, width), each pixel with the value of the cell it lies in."""
    rows, columns = ((np.arange(n) * m) // n for n, m in zip(size, values.shape[:2], strict=True))
    return values[rows[:, None], columns]


def bilinear(values, size):
    """A map [rows, columns] at another size (height, width), smooth between the middles of its cells."""
    rows, columns = (
        (np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1), m) for n, m in zip(size, values.shape[:2], strict=True)
    )
    half = np.stack([np.interp(columns[0], np.arange(columns[1]), row) for row in values])
    return np.stack([np.interp(rows[0], np.arange(rows[1]), column) for column in half.T], axis=1)
