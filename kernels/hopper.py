"""Numbers of a Hopper GPU (sm_90: H100, H200) that its kernels and their layouts are made for."""

import jax.numpy as jnp

SMEM = 232_448  # bytes of shared memory that a block may take
MULTIPROCESSORS = 132
ROWS = 64  # of a product: what the tensor cores take from one warpgroup of 128 threads
COLUMNS = 256  # of a product, at most; also elements of a copy along an axis
ALIGNED = 128  # bytes: where a copy to or from shared memory may begin


def refusal(q):
    """Why the tensor cores do not take operands like q, an array or shape [..., head_dim]; or None."""
    if q.dtype == jnp.float32:
        return "float32: the tensor cores would round it to TF32"
    if q.shape[-1] % 16 or q.shape[-1] > 128:
        return f"head_dim={q.shape[-1]}: multiples of 16 up to 128"
    return None
