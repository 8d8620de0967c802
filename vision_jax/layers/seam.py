"""A place at which XLA's fusions on CPUs stop."""

import jax
import jax.numpy as jnp


def seam(x):
    """x, unchanged. On CPUs what is computed before it and after it are two programs.

    There XLA hands products, reductions and all the arithmetic around them to a library (YNNPACK) as one operator. A
    long expression is torn apart for it: every scalar constant becomes an array as large as the map, and the taps of a
    window are written out one by one. Whatever is fast as a loop of its own ends in a seam. A barrier
    (`jax.lax.optimization_barrier`) is gone by then; a rounding to the array's own precision, which no library knows,
    is not, and the loop contains it for nothing.
    """
    return jax.lax.platform_dependent(x, cpu=_rounded, default=lambda x: x)


def _rounded(x):
    kind = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
