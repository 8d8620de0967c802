"""What the kernels of neighborhood attention take, whatever the device."""

import dataclasses
import math
from typing import ClassVar

from vision_jax.kernels.limits import mixed
from vision_jax.kernels.packed_heads import Heads


@dataclasses.dataclass(frozen=True)
class Call:
    """One device's part of a call, on maps of `AXES` axes; one of fewer is a single plane, or row, of such a map.

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

    AXES: ClassVar[int]  # that the kernel's maps have

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
        alone = (1,) * (cls.AXES - len(sizes))
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
    if v.shape[-1] != q.shape[-1]:
        return "v must have q's head_dim"
    reason = mixed(q, k, v)
    if reason:
        return reason
    for n, d in zip(sizes, options["dilation"], strict=True):
        if n % d:
            return f"dilation={d} does not divide the {n} positions of an axis"
    return None


def to_groups(x, dilation, axes):
    """[B, *sizes, heads, d] -> [B * groups, *places in a group, heads, d], a map of `axes` axes (`Call.AXES`)."""
    B, sizes, rest = len(x), x.shape[1:-2], x.shape[-2:]
    if any(d > 1 for d in dilation):
        x = x.reshape(B, *(m for n, d in zip(sizes, dilation, strict=True) for m in (n // d, d)), *rest)
        places, phases = range(1, 2 * len(sizes), 2), range(2, 2 * len(sizes) + 1, 2)
        x = x.transpose(0, *phases, *places, x.ndim - 2, x.ndim - 1)
    grouped = [n // d for n, d in zip(sizes, dilation, strict=True)]
    return x.reshape(-1, *(1,) * (axes - len(sizes)), *grouped, *rest)


def from_groups(x, dilation, sizes):
    """The inverse of `to_groups`."""
    rest, axes = x.shape[-2:], len(sizes)
    grouped = [n // d for n, d in zip(sizes, dilation, strict=True)]
    x = x.reshape(-1, *dilation, *grouped, *rest)
    order = [axis for n in range(axes) for axis in (1 + axes + n, 1 + n)]
    return x.transpose(0, *order, x.ndim - 2, x.ndim - 1).reshape(len(x), *sizes, *rest)
