"""A map cut as a plan says: into dilation groups, and these into tiles of queries and of the keys that they reach.

Axes are written as follows: B batch, P dilation groups, then for each axis of the map its places in a group. A step of
the loop takes `groups` groups and a chunk of tiles: C tiles of Q queries and K keys.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from vision_jax.kernels.neighborhood_attention.plans import group_windows


def to_groups(x, plan, fill=0):
    """[B, *sizes, ...] -> [B, P, *(tiles * tile), ...]; `fill` beyond the ends of groups."""
    axes, n = plan.axes, len(plan.axes)
    pads = [(0, axis.tiles * axis.tile * axis.dilation - axis.size) for axis in axes]
    x = jnp.pad(x, ((0, 0), *pads, *((0, 0),) * (x.ndim - n - 1)), constant_values=fill)
    x = x.reshape(x.shape[0], *(size for a in axes for size in (a.tiles * a.tile, a.dilation)), *x.shape[n + 1 :])
    x = x.transpose(0, *range(2, 2 * n + 1, 2), *range(1, 2 * n, 2), *range(2 * n + 1, x.ndim))
    return x.reshape(x.shape[0], plan.all_groups, *x.shape[n + 1 :])


def from_groups(x, plan):
    """The inverse of `to_groups`."""
    axes, n = plan.axes, len(plan.axes)
    x = x.reshape(x.shape[0], *(axis.dilation for axis in axes), *x.shape[2:])
    x = x.transpose(0, *(i for a in range(n) for i in (1 + n + a, 1 + a)), *range(2 * n + 1, x.ndim))
    x = x.reshape(x.shape[0], *(axis.tiles * axis.tile * axis.dilation for axis in axes), *x.shape[2 * n + 1 :])
    return x[(slice(None), *(slice(axis.size) for axis in axes))]


def with_halo(x, plan):
    """What belongs to keys, [B, *sizes, ...] -> [B, P, *(left + tiles * tile + right), ...], zeros around."""
    x = to_groups(x, plan)
    pads = [(axis.left, axis.right) for axis in plan.axes]
    return jnp.pad(x, ((0, 0), (0, 0), *pads, *((0, 0),) * (x.ndim - len(pads) - 2)))


def without_halo(x, plan):
    """The inverse of `with_halo`."""
    inner = (slice(axis.left, axis.left + axis.tiles * axis.tile) for axis in plan.axes)
    return from_groups(x[(slice(None), slice(None), *inner)], plan)


def take(x, origin, plan):
    """The keys of a step's tiles, of what `with_halo` gave: [B, groups, C, K, ...].

    With `plan.queries` the queries, of what `to_groups` gave: [B, groups, C, Q, ...].
    """
    return _halos(_region(x, origin, plan), plan)


def put(x, origin, plan, tiles):
    """x with a step's tiles where `take` reads them, which must not overlap."""
    return jax.lax.dynamic_update_slice(x, _from_halos(tiles, plan), _corner(x, origin))


def add(x, origin, plan, tiles):
    """x with a step's tiles added where `take` reads them."""
    return jax.lax.dynamic_update_slice(x, _region(x, origin, plan) + _from_halos(tiles, plan), _corner(x, origin))


def _region(x, origin, plan):
    shape = (x.shape[0], plan.groups, *_region_lengths(plan), *x.shape[2 + len(plan.axes) :])
    return jax.lax.dynamic_slice(x, _corner(x, origin), shape)


def _region_lengths(plan):
    return [(axis.chunk - 1) * axis.tile + axis.halo for axis in plan.axes]


def _corner(x, origin):
    return (np.int32(0), *origin, *(np.int32(0),) * (x.ndim - len(origin) - 1))


def _halos(x, plan):
    """A region -> its tiles with their halos."""
    for i, axis in enumerate(plan.axes):
        at = 2 + 2 * i  # behind the chunks and halos of the axes before
        blocks = -(-axis.halo // axis.tile)  # a halo begins with a block of its own and takes this many
        x = _pad_end(x, at, (axis.chunk - 1 + blocks) * axis.tile)
        x = x.reshape(*x.shape[:at], -1, axis.tile, *x.shape[at + 1 :])
        x = jnp.stack([jax.lax.slice_in_dim(x, j, j + axis.chunk, axis=at) for j in range(blocks)], at + 1)
        x = x.reshape(*x.shape[: at + 1], -1, *x.shape[at + 3 :])
        x = jnp.moveaxis(jax.lax.slice_in_dim(x, 0, axis.halo, axis=at + 1), at, 2 + i)
    K = math.prod(axis.halo for axis in plan.axes)
    return x.reshape(*x.shape[:2], -1, K, *x.shape[2 + 2 * len(plan.axes) :])


def _from_halos(x, plan):
    """The transpose of `_halos`: overlaps are added."""
    shape = jax.ShapeDtypeStruct((*x.shape[:2], *_region_lengths(plan), *x.shape[4:]), x.dtype)
    return jax.linear_transpose(lambda region: _halos(region, plan), shape)(x)[0]


def _pad_end(x, axis, length):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, pads)


def takes_part(origin, plan):
    """Which keys of a tile's halo its queries see in this step: bool [groups or 1, C, Q, K]."""
    n, dilations = len(plan.axes), tuple(axis.dilation for axis in plan.axes)
    out = jnp.ones((1,) * (1 + 3 * n), bool)
    for i, axis in enumerate(plan.axes):
        seen = []
        for table in group_windows(axis):
            group, rows = np.int32(0), 1
            if len(table) > 1:  # a row a group of this axis -> a row a group of the map
                table = table.reshape(*(axis.dilation if j == i else 1 for j in range(n)), -1)
                table = np.broadcast_to(table, (*dilations, table.shape[-1])).reshape(-1, table.shape[-1])
                group, rows = origin[0], plan.groups
            part = (rows, axis.chunk * axis.tile)
            part = jax.lax.dynamic_slice(jnp.asarray(table, jnp.int32), (group, origin[1 + i]), part)
            seen.append(part.reshape(rows, axis.chunk, axis.tile, 1))
        tile = jnp.arange(axis.chunk)[:, None, None] * axis.tile
        key = origin[1 + i] + tile + jnp.arange(axis.halo) - axis.left
        sees = (seen[0] <= key) & (key < seen[1])  # [rows, chunk, tile, halo]
        shape = [len(sees), *(1,) * (3 * n)]
        shape[1 + i], shape[1 + n + i], shape[1 + 2 * n + i] = sees.shape[1:]
        out = out & sees.reshape(shape)
    C, Q, K = (math.prod(out.shape[1 + j * n : 1 + (j + 1) * n]) for j in range(3))
    return out.reshape(len(out), C, Q, K)


def halo_bias(bias, plan):
    """A table of relative positions [heads, 2k-1 an axis] -> what the keys of a halo get, [heads, Q, K].

    Relative positions are the same in every tile. By products with ones and zeros, so that the gradient adds up in a
    fixed order, in full precision.
    """
    n = len(plan.axes)
    for axis in plan.axes:
        query, key = np.arange(axis.tile)[:, None], np.arange(axis.halo)[None] - axis.left
        place = np.arange(2 * axis.kernel_size - 1) - (axis.kernel_size - 1)
        ones = jnp.asarray((key - query)[..., None] == place, bias.dtype)
        bias = jnp.tensordot(bias, ones, ((1,), (2,)), precision=jax.lax.Precision.HIGHEST)
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2))
    Q = math.prod(axis.tile for axis in plan.axes)
    return bias.transpose(order).reshape(len(bias), Q, -1)
