"""How parameters meet activations: products with kernels and sums with biases, in the dtype of the computation.

Activations of a batch lie on several devices, so that the gradient of a parameter is a sum over them, in the dtype in
which it was made: that of the computation, unless `vision_jax.mesh.gradients_in` says another one.
"""

import functools

import jax
import jax.numpy as jnp

from vision_jax.mesh import gradient_dtype


def weigh(product, x, kernel, dtype):
    """product(x, kernel), both in `dtype`.

    Args:
      product: bilinear, as `jnp.matmul`.
      x: activations.
      kernel: float32.
      dtype: of the computation and the result.
    """
    wanted = gradient_dtype()
    if wanted is None:
        return product(x.astype(dtype), kernel.astype(dtype))
    return _weigh(product, dtype, wanted, x.astype(dtype), kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weigh(product, dtype, wanted, x, kernel):
    del wanted
    return product(x, kernel.astype(dtype))


def _weighed(product, dtype, wanted, x, kernel):
    return _weigh(product, dtype, wanted, x, kernel), (x, kernel)


def _weigh_back(product, dtype, wanted, kept, dy):
    x, kernel = kept
    (dx,) = jax.vjp(lambda x: product(x, kernel.astype(dtype)), x)[1](dy)
    x, dy = x.astype(wanted), dy.astype(wanted)
    (dk,) = jax.vjp(lambda kernel: product(x, kernel), kernel.astype(wanted))[1](dy)
    return dx, dk.astype(kernel.dtype)


_weigh.defvjp(_weighed, _weigh_back)


def shift(y, bias):
    """y + bias in y's dtype: y [..., *shape of the bias], the bias float32."""
    wanted = gradient_dtype()
    return y + (bias.astype(y.dtype) if wanted is None else _spread(y.shape, y.dtype, wanted, bias))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _spread(shape, dtype, wanted, bias):
    del wanted
    return jnp.broadcast_to(bias.astype(dtype), shape)


def _spread_back(shape, dtype, wanted, bias, dy):
    del dtype
    return (dy.astype(wanted).sum(tuple(range(len(shape) - bias.ndim))).astype(bias.dtype),)


_spread.defvjp(lambda shape, dtype, wanted, bias: (_spread(shape, dtype, wanted, bias), bias), _spread_back)
