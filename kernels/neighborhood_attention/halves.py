"""The two halves of neighborhood attention in plain JAX, one key of the windows after the other.

What lies between them has a number for every query and key of its window; so has their memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from vision_jax.kernels.neighborhood_attention.windows import axis_windows


def neighborhood_scores(q, k, *, kernel_size, bias, scale, **options):
    """[B, *sizes, heads, keys of a window]; arguments are checked, options are tuples."""
    wide, key_heads, n = jnp.promote_types(q.dtype, jnp.float32), k.shape[-2], q.ndim - 3
    grouped = q.reshape(*q.shape[:-2], key_heads, -1, q.shape[-1])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(slot):
        scores = jnp.einsum("...hrd,...hd->...hr", grouped, _keys(k, slot), preferred_element_type=wide) * scale
        scores = scores.reshape(q.shape[:-1])
        if bias is not None:
            scores = scores + jnp.moveaxis(_take(bias, slot.relative), 0, -1).astype(wide)
        return jnp.where(_all(slot.takes_part, n)[..., None], scores, -jnp.inf)

    return jnp.moveaxis(jax.lax.map(one, _slots(q.shape[1:-2], kernel_size, **options)), 0, -1)


def neighborhood_aggregate(weights, v, *, kernel_size, **options):
    """[B, *sizes, heads, value_dim]; arguments are checked, options are tuples."""
    wide, key_heads, n = jnp.promote_types(v.dtype, jnp.float32), v.shape[-2], v.ndim - 3

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(out, one):
        slot, weights = one
        weights = jnp.where(_all(slot.takes_part, n)[..., None], weights, 0)
        weights = weights.reshape(*weights.shape[:-1], key_heads, -1, 1)
        return out + weights.astype(wide) * _keys(v, slot)[..., None, :], None

    slots = _slots(v.shape[1:-2], kernel_size, **options)
    heads = weights.shape[-2]
    zeros = jnp.zeros((*v.shape[:-1], heads // key_heads, v.shape[-1]), wide)
    out, _ = jax.lax.scan(add, zeros, (slots, jnp.moveaxis(weights, -1, 0)))
    return out.reshape(*v.shape[:-2], heads, v.shape[-1]).astype(v.dtype)


class Slots(NamedTuple):
    """Of each key of the windows, [keys of a window, size] for each axis.

    Attributes:
      position: where it lies; inside: whether that is in the map; takes_part: whether it counts.
      relative: its position less the query's, over the dilation, as an index into the bias.
    """

    position: tuple
    inside: tuple
    takes_part: tuple
    relative: tuple


def _slots(sizes, kernel_size, stride, dilation, is_causal, border):
    numbers = np.indices(kernel_size).reshape(len(sizes), -1)  # the keys of a window, row by row
    axes = []
    for size, k, s, d, causal, number in zip(sizes, kernel_size, stride, dilation, is_causal, numbers, strict=True):
        windows, query = axis_windows(size, k, s, d, causal, border), np.arange(size)
        place = windows.first + number[:, None]
        position = place * d + query % d
        inside = (position >= 0) & (position < size)
        takes_part = (windows.start <= place) & (place < windows.stop)
        # what does not take part reads some key and some bias
        axes.append(
            (
                np.clip(position, 0, size - 1), inside, takes_part,
                np.clip(place - query // d + k - 1, 0, 2 * k - 2),
            )
        )  # fmt: skip
    return Slots(*(tuple(map(jnp.asarray, field)) for field in zip(*axes, strict=True)))


def _keys(x, slot):
    """The key that each query has in this slot, zeros outside of the map: [B, *sizes, heads, d]."""
    return jnp.where(_all(slot.inside, x.ndim - 3)[..., None, None], _take(x, slot.position), 0)


def _take(x, indices):
    """x at indices along each axis but the first."""
    for i, index in enumerate(indices):
        x = jnp.take(x, index, axis=1 + i)
    return x


def _all(axes, n):
    """Where a flag is set along each of n axes: bool [*sizes]."""
    return functools.reduce(jnp.logical_and, (a.reshape(-1, *(1,) * (n - 1 - i)) for i, a in enumerate(axes)))
