"""Blocks of the mobile networks: inverted bottlenecks and what stands beside them, each layer with a batch norm.

Inverted bottlenecks (MobileNetV2: Sandler et al., 2018, arXiv:1801.04381) widen, convolve each channel by itself, and
narrow again without an activation; squeeze-and-excitation, where there is one, weighs the wide channels. A block adds
its input where that has the result's shape. Maps are [B, H, W, din] -> [B, H/stride, W/stride, dout] throughout.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.drop import drop_path
from vision_jax.mesh import constrain_batch


class Parts(NamedTuple):
    """How a network makes the layers of its blocks.

    Attributes:
      conv: `(din, dout, kernel_size, stride=, groups=) -> module`, without a bias.
      norm: `(dim) -> module`, called as norm(x, train).
      act: activation.
      se: `(dim, hidden) -> module`, the squeeze-and-excitation.
    """

    conv: Callable
    norm: Callable
    act: Callable
    se: Callable

    def squeeze(self, dim, hidden):
        """Its squeeze-and-excitation, or None for no hidden channels."""
        return self.se(dim, hidden) if hidden else None


class Residual(nnx.Module):
    """x + drop_path(branch(x)) where `skip` holds and the shapes allow it, else branch(x)."""

    def __init__(self, din, dout, stride, skip):
        self.skip = skip and stride == 1 and din == dout

    def __call__(self, x, train=None):
        y = self.branch(x, train)
        return tap(self, "output", constrain_batch(x + drop_path(y, train) if self.skip else y))


class ConvBlock(Residual):
    """A convolution, normalised and activated."""

    def __init__(self, din, dout, kernel_size, *, stride=1, skip=True, parts):
        super().__init__(din, dout, stride, skip)
        self.act = parts.act
        self.conv, self.bn1 = parts.conv(din, dout, kernel_size, stride=stride), parts.norm(dout)

    def branch(self, x, train):
        """What is added to the input."""
        return self.act(self.bn1(self.conv(x), train))


class SeparableConv(Residual):
    """A depthwise convolution, squeeze-and-excitation, a pointwise convolution (an inverted bottleneck not widened)."""

    def __init__(self, din, dout, kernel_size, *, squeezed=0, stride=1, skip=True, parts):
        super().__init__(din, dout, stride, skip)
        self.act = parts.act
        self.conv_dw, self.bn1 = parts.conv(din, din, kernel_size, stride=stride, groups=din), parts.norm(din)
        self.se = parts.squeeze(din, squeezed)
        self.conv_pw, self.bn2 = parts.conv(din, dout, 1), parts.norm(dout)

    def branch(self, x, train):
        """What is added to the input."""
        x = self.act(self.bn1(self.conv_dw(x), train))
        return self.bn2(self.conv_pw(self.se(x) if self.se else x), train)


class MBConv(Residual):
    """An inverted bottleneck with `hidden` channels inside."""

    def __init__(self, din, dout, kernel_size, *, hidden, squeezed=0, stride=1, skip=True, parts):
        super().__init__(din, dout, stride, skip)
        self.act = parts.act
        self.conv_pw, self.bn1 = parts.conv(din, hidden, 1), parts.norm(hidden)
        self.conv_dw = parts.conv(hidden, hidden, kernel_size, stride=stride, groups=hidden)
        self.bn2, self.se = parts.norm(hidden), parts.squeeze(hidden, squeezed)
        self.conv_pwl, self.bn3 = parts.conv(hidden, dout, 1), parts.norm(dout)

    def branch(self, x, train):
        """What is added to the input."""
        x = self.act(self.bn1(self.conv_pw(x), train))
        x = self.act(self.bn2(self.conv_dw(x), train))
        return self.bn3(self.conv_pwl(self.se(x) if self.se else x), train)


class FusedMBConv(Residual):
    """One dense convolution for the first two of an inverted bottleneck: faster where accelerators have the units.

    EfficientNet-EdgeTPU (Gupta & Tan, 2019), EfficientNetV2 (Tan & Le, 2021, arXiv:2104.00298, figure 2).
    `shrink`: map -> half of it, in place of the stride.
    """

    def __init__(self, din, dout, kernel_size, *, hidden, squeezed=0, stride=1, skip=True, shrink=None, parts):
        super().__init__(din, dout, stride, skip)
        self.act, self.shrink = parts.act, shrink if stride > 1 else None
        stride = 1 if self.shrink else stride
        self.conv_exp, self.bn1 = parts.conv(din, hidden, kernel_size, stride=stride), parts.norm(hidden)
        self.se = parts.squeeze(hidden, squeezed)
        self.conv_pwl, self.bn2 = parts.conv(hidden, dout, 1), parts.norm(dout)

    def branch(self, x, train):
        """What is added to the input."""
        x = self.act(self.bn1(self.conv_exp(x), train))
        x = self.shrink(x) if self.shrink else x
        return self.bn2(self.conv_pwl(self.se(x) if self.se else x), train)
