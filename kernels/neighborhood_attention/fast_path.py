"""What the kernels of neighborhood attention take, whatever the device."""

import dataclasses
import math

from vision_jax.kernels.limits import mixed
from vision_jax.kernels.packed_heads import Heads


@dataclasses.dataclass(frozen=True)
class Call:
    """One device's part of a call on maps of one or two axes; of one axis, the map is a single row.

    Attributes:
      batch, size, heads: of the map, its positions an axis already those of one dilation group.
      kernel_size, stride, is_causal: an axis.
      border: as the public function takes it.
    """

    batch: int
    size: tuple
    heads: Heads
    kernel_size: tuple
    stride: tuple
    is_causal: tuple
    border: str

    @classmethod
    def of(cls, shape, options, **own):
        """The call on queries of `shape`, [B, *sizes, heads, head_dim] on one device.

        Args:
          shape: of the queries, before their dilation groups join the batch.
          options: kernel_size, stride, dilation, is_causal (one an axis) and border.
          **own: fields of the class's own.
        """
        batch, *sizes, heads, head_dim = shape
        dilation = options["dilation"]
        grouped = [n // d for n, d in zip(sizes, dilation, strict=True)]
        alone = (1,) * (2 - len(sizes))
        per_axis = [(*alone, *options[name]) for name in ("kernel_size", "stride")]
        causal = (*(False for _ in alone), *options["is_causal"])
        size, batch = (*alone, *grouped), batch * math.prod(dilation)
        return cls(batch, size, Heads(heads, head_dim), *per_axis, causal, options["border"], **own)


def beyond(q, k, v, shape, options):
    """Why no kernel takes a call, or None.

    Args:
      q, k, v: arrays or shapes.
      shape: q's on one device.
      options: as `Call.of` takes them.
    """
    sizes = shape[1:-2]
    if len(sizes) > 2:
        return "maps of three axes: through XLA only"
    if v.shape[-1] != q.shape[-1]:
        return "v must have q's head_dim"
    reason = mixed(q, k, v)
    if reason:
        return reason
    for n, d in zip(sizes, options["dilation"], strict=True):
        if n % d:
            return f"dilation={d} does not divide the {n} positions of an axis"
    return None
