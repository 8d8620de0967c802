"""Rotary position embedding: queries and keys turned by angles that grow with their positions."""

import functools

import jax.numpy as jnp
import numpy as np


@functools.cache
def axial_angles(height, width, frequencies):
    """Angles of a grid's tokens, row by row, float64 [height * width, 2 len(frequencies)].

    The first half is the row times each frequency, the second half the column.

    Args:
      height, width: the grid, in tokens.
      frequencies: radians a token, a tuple.
    """
    rows, columns = (axis.reshape(-1, 1) for axis in np.mgrid[:height, :width])
    return np.concatenate([rows * np.array(frequencies), columns * np.array(frequencies)], axis=1)


def rotate(x, angles):
    """Turns neighbouring pairs of channels, [B, *spatial, heads, head_dim] -> the same.

    (x0, x1) becomes (x0 cos a - x1 sin a, x1 cos a + x0 sin a), so that a product of a query and a key depends on the
    difference of their positions (RoFormer: Su et al., 2021, arXiv:2104.09864, equation 34).

    Args:
      x: queries or keys.
      angles: [tokens, head_dim / 2], the tokens in the order of the spatial axes.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    angles = angles.reshape(*x.shape[1:-2], 1, x.shape[-1] // 2)
    cos, sin = np.cos(angles).astype(wide), np.sin(angles).astype(wide)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape).astype(x.dtype)
