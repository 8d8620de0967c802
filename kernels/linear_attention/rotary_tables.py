"""What rotates queries and keys: angles for each axis of the tokens, checked; and as tables for the TPU kernel.

An angle belongs to one axis, so that a token's cosines are those of its row in some lanes and those of its column in
the others: the sum of two short tables, each zero in the other's lanes. They stay on the chip, where a table of all
tokens would be fetched for every image.
"""

import jax
import jax.numpy as jnp
import numpy as np
from vision_jax.kernels.linear_attention import packed_states
from vision_jax.kernels.packed_heads import LANES
from vision_jax.kernels.rotation import grid_angles

from vision_jax.errors import InputError


def check(q, rotary):
    """The angles as float64 numpy arrays, a tuple, for queries [B, *spatial, heads, head_dim].

    Raises:
      InputError: they do not fit the queries, or are not known while JAX traces.
    """
    spatial, head_dim = q.shape[1:-2], q.shape[-1]
    if not isinstance(rotary, (tuple, list)) or len(rotary) != len(spatial):
        given = f"{len(rotary)} of them" if isinstance(rotary, (tuple, list)) else type(rotary).__name__
        raise InputError(f"rotary: a tuple of {len(spatial)} arrays of angles, one an axis of the tokens, not {given}")
    if any(isinstance(axis, jax.core.Tracer) for axis in rotary):
        raise InputError("rotary must be known while JAX traces: a constant, which has no gradient")
    axes = tuple(np.asarray(axis, np.float64) for axis in rotary)
    shapes = [axis.shape for axis in axes]
    if any(len(shape) != 2 or shape[0] != size for shape, size in zip(shapes, spatial, strict=True)):
        raise InputError(f"rotary of shapes {shapes}: [size, pairs of channels] for each axis of sizes {spatial}")
    if 2 * sum(pairs for _, pairs in shapes) != head_dim:
        raise InputError(f"rotary of shapes {shapes}: all axes together turn {head_dim} / 2 pairs of channels")
    return axes


def tables(axes, heads):
    """(of the axes but the last [2, rows, 1, lanes], of the last [2, columns, lanes]), float32 numpy arrays.

    Each holds cosines, then sines of the sign that the partner of a lane comes with; 0 in the other's lanes.
    """
    *outer, last = axes
    outer = grid_angles(outer) if outer else np.zeros((1, 0))
    of_rows = _table(outer, 0, last.shape[1], heads.in_step)
    return of_rows[:, :, None], _table(last, outer.shape[1], 0, heads.in_step)


def _table(angles, before, after, heads):
    sign = np.tile([-1.0, 1.0], angles.shape[1])
    table = np.stack([np.repeat(np.cos(angles), 2, axis=1), np.repeat(np.sin(angles), 2, axis=1) * sign])
    return np.tile(np.pad(table, ((0, 0), (0, 0), (2 * before, 2 * after))), heads).astype(np.float32)


# For use inside a Pallas kernel.


def turn(x, rows, columns):
    """Turns a tile of whole rows [n, tile, lanes] by references to its part of the tables; float32."""
    cos, sin = _of_tokens(x, rows, columns)
    return x.astype(jnp.float32) * cos + _partners(x, x.dtype) * sin


def turn_back(gradient, rows, columns, dtype):
    """The gradient of what was turned, float32, from that of the result; at the precision that `dtype` needs."""
    cos, sin = _of_tokens(gradient, rows, columns)
    return gradient * cos - _partners(gradient, dtype) * sin


def _of_tokens(x, rows, columns):
    """Cosines and sines [1, tile, lanes]."""
    return ((rows[i] + columns[i][None]).reshape(1, *x.shape[1:]) for i in (0, 1))


def _partners(x, dtype):
    """Each lane's neighbour in its pair, float32: by the matrix unit, which moves lanes sooner than shuffles do."""
    parts = []
    for start in range(0, x.shape[2], LANES):
        part = x[:, :, start : start + LANES]
        n = part.shape[2]
        lane, other = (jax.lax.broadcasted_iota(jnp.int32, (1, n, n), axis) for axis in (1, 2))
        swap = jnp.where(lane == other ^ 1, 1.0, 0.0).astype(dtype)
        parts.append(packed_states.product(part, jnp.broadcast_to(swap, (len(x), n, n)), ((2,), (1,))))
    return jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
