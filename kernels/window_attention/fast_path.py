"""What the kernels of window attention take, whatever the device."""

import dataclasses

from vision_jax.kernels.limits import unequal


@dataclasses.dataclass(frozen=True)
class Call:
    """One device's part of a call: `size` of its maps, and the options, each a pair."""

    batch: int
    size: tuple
    window: tuple
    shift: tuple
    dilation: tuple

    @property
    def tokens(self):
        """Tokens of a window."""
        return self.window[0] * self.window[1]


def beyond(call, q, k, v, *, return_lse, other):
    """Why no kernel takes a call, or None.

    Args:
      call: its sizes and options.
      q, k, v: arrays or shapes [B, H, W, heads, head_dim].
      return_lse: whether the caller wants the log-sum-exp.
      other: names of options in use that only XLA has.
    """
    if other:
        return f"{', '.join(other)}: through XLA only"
    if return_lse:
        return "return_lse: the kernel keeps no log-sum-exp"
    if any(call.shift) and max(call.dilation) > 1:
        return "shift with dilation: through XLA only"
    return unequal(q, k, v)
