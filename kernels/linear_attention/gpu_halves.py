"""Products with float32 states on sm_90 GPUs, whose tensor cores take them in two halves of bfloat16.

For use inside a block. As on TPU (`packed_states.product`): states sum many tokens, and rounding them once more would
show in the result.
"""

import jax.numpy as jnp
from vision_jax.kernels.mosaic_gpu import laid, product


def rounded_halves(x):
    """float32 x as the sum of two of bfloat16."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


def apply(x, halves, transposed=False):
    """x times a state given in two halves, or times its transpose."""
    return sum(product(x, half, (False, transposed)) for half in halves)


def wide(ref):
    """A tile as float32, in registers."""
    return laid(ref[...]).astype(jnp.float32)
