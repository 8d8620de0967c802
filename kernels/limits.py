"""What the kernels of several operators ask of a call, and what the device gives them."""

import jax.numpy as jnp
from vision_jax.kernels import dispatch

CPU_VMEM = 128 * 2**20  # of v5e and v6e, where a kernel is only interpreted


def unequal(q, k, v, *others):
    """Why a kernel for operands of one shape of heads and one dtype does not take these, or None.

    Args:
      q, k, v: arrays or shapes [..., heads, head_dim].
      *others: more, of which only the dtype is looked at.
    """
    if k.shape[-2:] != q.shape[-2:] or v.shape[-2:] != q.shape[-2:]:
        return "k and v must have q's heads and head_dim"
    dtypes = [x.dtype for x in (q, k, v, *others)]
    if q.dtype not in (jnp.float32, jnp.bfloat16) or len(set(dtypes)) > 1:
        return f"all operands must be bfloat16 or all float32, not {', '.join(map(str, dtypes))}"
    return None


def vmem():
    """Bytes of VMEM that a step may take on the TPU that is traced for: all but what the compiler keeps."""
    capacity = CPU_VMEM
    if dispatch.device()[0] == "tpu":
        from jax.experimental.pallas import tpu as pltpu  # here, because Pallas takes its time to import

        capacity = pltpu.get_tpu_info().vmem_capacity_bytes
    return capacity // 32 * 31


def largest_divisor(n, most):
    """The largest divisor of n up to `most`, and at least 1."""
    return max(d for d in range(1, max(most, 1) + 1) if n % d == 0)
