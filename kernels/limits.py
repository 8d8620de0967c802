"""What the kernels of several operators ask of a call, and what the device gives them."""

import jax.numpy as jnp
from vision_jax.kernels import dispatch

CPU_VMEM = 128 * 2**20  # of v5e and v6e, where a kernel is only interpreted
CPU_SMEM = 2**20  # likewise
LEAST_VMEM = 32 * 2**20  # that a step asks for


def unequal(q, k, v, *others):
    """Why a kernel for operands of one shape of heads and one dtype does not take these, or None.

    Args:
      q, k, v: arrays or shapes [..., heads, head_dim].
      *others: more, of which only the dtype is looked at.
    """
    if k.shape[-2:] != q.shape[-2:] or v.shape[-2:] != q.shape[-2:]:
        return "k and v must have q's heads and head_dim"
    return mixed(q, k, v, *others)


def mixed(q, *others):
    """Why a kernel for operands of one dtype does not take these, or None."""
    dtypes = [x.dtype for x in (q, *others)]
    if q.dtype not in (jnp.float32, jnp.bfloat16) or len(set(dtypes)) > 1:
        return f"all operands must be bfloat16 or all float32, not {', '.join(map(str, dtypes))}"
    return None


def vmem():
    """Bytes of VMEM of the TPU that is traced for, of which a step can take all."""
    if dispatch.device()[0] != "tpu":
        return CPU_VMEM
    from jax.experimental.pallas import tpu as pltpu  # here, because Pallas takes its time to import

    return pltpu.get_tpu_info().vmem_capacity_bytes


def smem():
    """Bytes of memory for scalars of the TPU that is traced for."""
    if dispatch.device()[0] != "tpu":
        return CPU_SMEM
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.get_tpu_info().smem_capacity_bytes


def step_vmem(needed=0):
    """The `vmem_limit_bytes` of a kernel: XLA keeps arrays of its own in what the kernel does not ask for.

    Args:
      needed: bytes that a step takes by its layout's estimate; a quarter is added, for what it leaves out.
    """
    return min(max(LEAST_VMEM, needed * 5 // 4), vmem())


def largest_divisor(n, most):
    """The largest divisor of n up to `most`, and at least 1."""
    return max(d for d in range(1, max(most, 1) + 1) if n % d == 0)
