"""Convolutions whose kernels depend on the example."""

import jax.numpy as jnp

from vision_jax.layers.conv import Conv
from vision_jax.layers.seam import seam
from vision_jax.layers.taps import padded, sizes, taps
from vision_jax.parameters import param


class CondConv(Conv):
    """A map [B, H, W, din] and weights [B, num_experts] -> [B, H', W', dout], pointwise or depthwise.

    CondConv (Yang et al., 2019, arXiv:1904.04971, section 3): an example's kernel is the sum of the experts' kernels,
    weighted as it says; so the convolution itself costs what one of them would.

    A depthwise one is the sum of its taps' products on every platform: as a convolution with a group for each example
    and channel, the batch would have to lie with the channels.

    Args:
      num_experts: number of kernels.
      din, dout, kernel_size, **how: see `Conv`; there is no bias.

    Raises:
      ValueError: it is neither.
    """

    def __init__(self, din, dout, kernel_size, num_experts, *, stride=1, groups=1, **how):
        self.pointwise = kernel_size == stride == groups == 1
        if not self.pointwise and not groups == din == dout:
            raise ValueError(f"kernel_size={kernel_size}, stride={stride}, groups={groups}: pointwise or depthwise")
        super().__init__(din, dout, kernel_size, stride=stride, groups=groups, bias=False, **how)
        one = self.kernel
        self.kernel = param((num_experts, *one.shape), one.init)

    def __call__(self, x, weights):
        x, weights, kernels = (y.astype(self.dtype) for y in (x, weights, self.filters()))
        kernels = jnp.tensordot(weights, kernels, 1)
        if self.pointwise:
            return jnp.einsum("bhwi,bio->bhwo", x, kernels[:, 0, 0])
        pads, wide = self.pads(x.shape[1:3]), jnp.promote_types(self.dtype, jnp.float32)
        seen = taps(
            padded(x, pads), kernels.shape[1:3], sizes(x.shape, kernels.shape[1:3], self.stride, pads), self.stride
        )
        kernels = kernels.reshape(-1, len(seen), self.groups).astype(wide)
        return seam(weighted_taps([tap.astype(wide) for tap in seen], kernels).astype(self.dtype))


def weighted_taps(seen, kernels):
    """The sum of a window's taps, a list of maps [B, H, W, C], times each example's weights [B, taps, C]."""
    return sum(tap * kernels[:, i, None, None] for i, tap in enumerate(seen))
