"""The sum and the maximum of sliding windows of a channels-last map.

XLA's own on every platform but CPUs, where it is a scalar loop (the gradient of a 3x3 maximum takes 100 times what it
could); they get expressions of the window's taps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.layers.seam import seam
from vision_jax.layers.taps import gathering, padded, sizes, taps


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def window_sum(x, window, stride, padding, shape):
    """[B, H, W, C] -> [B, H', W', C], differentiable in reverse.

    Args:
      x: the map; padding counts as zero.
      window, stride: a pair.
      padding: ((above, below), (left, right)).
      shape: of x, which the gradient needs and x's values it does not.
    """

    def taps_sum(x):
        size = sizes(shape, window, stride, padding)
        return seam(sum(taps(padded(x, padding), window, size, stride)))

    return jax.lax.platform_dependent(x, cpu=taps_sum, default=_xla(jax.lax.add, 0.0, window, stride, padding))


def _sum_backward(window, stride, padding, shape, _, dy):
    def gathered(dy):
        pads = gathering(shape, dy.shape[1:3], window, stride, padding)
        return seam(sum(taps(padded(dy, pads), window, shape[1:3], (1, 1))))

    def transposed(dy):
        x = jax.ShapeDtypeStruct(shape, dy.dtype)
        return jax.linear_transpose(_xla(jax.lax.add, 0.0, window, stride, padding), x)(dy)[0]

    return (jax.lax.platform_dependent(dy, cpu=gathered, default=transposed),)


window_sum.defvjp(lambda x, *how: (window_sum(x, *how), None), _sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def window_max(x, window, stride, padding):
    """[B, H, W, C] -> [B, H', W', C], differentiable in reverse: of equal values the window's first counts.

    Args:
      x: the map; padding never wins.
      window, stride: a pair.
      padding: ((above, below), (left, right)).
    """

    def taps_max(x):
        size = sizes(x.shape, window, stride, padding)
        return seam(functools.reduce(jnp.maximum, taps(padded(x, padding, -np.inf), window, size, stride)))

    return jax.lax.platform_dependent(x, cpu=taps_max, default=_xla(jax.lax.max, -np.inf, window, stride, padding))


def _max_backward(window, stride, padding, x, dy):
    def gathered(x, dy):
        seen = taps(padded(x, padding, -np.inf), window, dy.shape[1:3], stride)
        best = functools.reduce(jnp.maximum, seen)
        winner = functools.reduce(lambda after, i: jnp.where(seen[i] == best, i, after), reversed(range(len(seen))), -1)
        pads = gathering(x.shape, dy.shape[1:3], window, stride, padding)
        winners = taps(padded(winner.astype(jnp.int32), pads, -1), window, x.shape[1:3], (1, 1))
        grads = taps(padded(dy, pads), window, x.shape[1:3], (1, 1))
        last = len(seen) - 1
        return seam(sum(jnp.where(w == last - i, g, 0) for i, (w, g) in enumerate(zip(winners, grads, strict=True))))

    def scattered(x, dy):
        return jax.vjp(_xla(jax.lax.max, -np.inf, window, stride, padding), x)[1](dy)[0]

    return (jax.lax.platform_dependent(x, dy, cpu=gathered, default=scattered),)


window_max.defvjp(lambda x, *how: (window_max(x, *how), x), _max_backward)


def _xla(reduction, start, window, stride, padding):
    sizes_and_pads = (1, *window, 1), (1, *stride, 1), ((0, 0), *padding, (0, 0))
    return lambda x: jax.lax.reduce_window(x, np.array(start, x.dtype), reduction, *sizes_and_pads)
