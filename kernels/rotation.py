"""Rotation of pairs of channels by angles of positions, as an operation of its own."""

import jax.numpy as jnp
import numpy as np


def rotate(x, angles, *, halves=False):
    """Turns pairs of channels, [B, *spatial, heads, head_dim] -> the same.

    (x0, x1) becomes (x0 cos a - x1 sin a, x1 cos a + x0 sin a), so that a product of a query and a key depends on the
    difference of their positions (RoFormer: Su et al., 2021, arXiv:2104.09864, equation 34).

    Args:
      x: queries or keys.
      angles: [tokens, head_dim / 2] or [tokens, heads, head_dim / 2], the tokens in the order of the spatial axes.
      halves: a pair is a channel of the first half and one of the second, not two neighbours.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    angles, known = angles.reshape(*x.shape[1:-2], -1, x.shape[-1] // 2), np if isinstance(angles, np.ndarray) else jnp
    cos, sin = known.cos(angles).astype(wide), known.sin(angles).astype(wide)
    first, second = jnp.split(x, 2, axis=-1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = first * cos - second * sin, second * cos + first * sin
    return (jnp.concatenate(turned, -1) if halves else jnp.stack(turned, -1).reshape(x.shape)).astype(x.dtype)


def grid_angles(axes):
    """Angles of a grid's tokens, row by row, [tokens, pairs of all axes], from those of each axis, [size, pairs].

    The first axis turns the first pairs.
    """
    sizes, last = [len(axis) for axis in axes], len(axes)
    spread = [np.expand_dims(axis, [i for i in range(last) if i != n]) for n, axis in enumerate(axes)]
    spread = [np.broadcast_to(axis, (*sizes, axis.shape[-1])) for axis in spread]
    return np.concatenate(spread, axis=-1).reshape(np.prod(sizes, dtype=int), -1)
