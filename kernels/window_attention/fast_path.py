"""What the kernels of window attention take, whatever the device."""

import jax.numpy as jnp


def beyond(layout, q, k, v, *, return_lse, other):
    """Why no kernel takes a call, or None.

    Args:
      layout: of the call, with `shift` and `dilation`.
      q, k, v: arrays or shapes [B, H, W, heads, head_dim].
      return_lse: whether the caller wants the log-sum-exp.
      other: names of options in use that only XLA has.
    """
    if other:
        return f"{', '.join(other)}: through XLA only"
    if return_lse:
        return "return_lse: the kernel keeps no log-sum-exp"
    if k.shape[3:] != q.shape[3:] or v.shape != k.shape:
        return "k and v must have q's heads and head_dim"
    if q.dtype not in (jnp.float32, jnp.bfloat16) or not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must all be bfloat16 or all float32, not {q.dtype}, {k.dtype} and {v.dtype}"
    if any(layout.shift) and max(layout.dilation) > 1:
        return "shift with dilation: through XLA only"
    return None
