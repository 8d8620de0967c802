"""Places at which XLA's fusions on CPUs stop."""

import jax
import jax.numpy as jnp

from vision_jax.kernels import dispatch
from vision_jax.layers.taps import padded


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


def middle_tap(x):
    """A map [B, H, W, C], unchanged. On CPUs it is cut out of the padding that a depthwise 3x3 convolution of it reads.

    There XLA computes a map anew for each of its readers where all of them are elementwise or shifted products, and
    with it whatever it was computed from: a chain of such blocks costs the square of its length. Where the others read
    the middle tap, the padding is the only reader. It must lie beside them, not in a branch for CPUs: the compiler
    drops it there. So it is chosen by the device that is traced for.
    """
    platform, _ = dispatch.device()
    return padded(x, ((1, 1), (1, 1)))[:, 1:-1, 1:-1] if platform == "cpu" else x
