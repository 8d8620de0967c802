"""Blocks of the mobile networks: inverted bottlenecks and what stands beside them, each layer with a batch norm.

Inverted bottlenecks (MobileNetV2: Sandler et al., 2018, arXiv:1801.04381) widen, convolve each channel by itself, and
narrow again without an activation; squeeze-and-excitation, where there is one, weighs the wide channels. A block adds
its input where that has the result's shape. Maps are [B, H, W, din] -> [B, H/stride, W/stride, dout] throughout.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.drop import drop_path
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import normalise
from vision_jax.mesh import constrain_batch
from vision_jax.parameters import VarianceScaling


class Parts(NamedTuple):
    """How a network makes the layers of its blocks.

    Attributes:
      conv: `(din, dout, kernel_size, stride=, groups=) -> module`, without a bias; kernel_size may be a tuple, for
        convolutions side by side (`layers.mixed_conv`). With num_experts= the module is called with weights of these,
        [B, num_experts], too (`layers.cond_conv`).
      norm: `(dim) -> module`, called as norm(x, train) if it is a batch norm.
      act: activation.
      se: `(dim, hidden) -> module`, the squeeze-and-excitation or what stands for it.
      shrink: map -> half of it, in place of strides, or None.
    """

    conv: Callable
    norm: Callable
    act: Callable
    se: Callable
    shrink: Callable | None = None

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
        return self.act(normalise(self.bn1, self.conv(x), train))


class SeparableConv(Residual):
    """A depthwise convolution, squeeze-and-excitation, a pointwise convolution (an inverted bottleneck not widened).

    `group_width`: channels that the first mixes. `last_act`: whether an activation follows the second (MobileNetV1).
    """

    def __init__(
        self, din, dout, kernel_size, *, squeezed=0, stride=1, skip=True, group_width=1, last_act=False, parts
    ):
        super().__init__(din, dout, stride, skip)
        self.act, self.last_act = parts.act, last_act
        self.conv_dw = parts.conv(din, din, kernel_size, stride=stride, groups=din // group_width)
        self.bn1, self.se = parts.norm(din), parts.squeeze(din, squeezed)
        self.conv_pw, self.bn2 = parts.conv(din, dout, 1), parts.norm(dout)

    def branch(self, x, train):
        """What is added to the input."""
        x = self.act(normalise(self.bn1, self.conv_dw(x), train))
        x = normalise(self.bn2, self.conv_pw(self.se(x) if self.se else x), train)
        return self.act(x) if self.last_act else x


class FoldedConv(SeparableConv):
    """The same of a map whose pixels are gathered two by two into `hidden` channels; never a shortcut.

    EfficientNet-X (Li et al., 2021, arXiv:2102.05610): the gathering is a convolution, and the kernel that follows is
    half as large.
    """

    def __init__(self, din, dout, kernel_size, *, hidden, squeezed=0, parts):
        super().__init__(hidden, dout, (kernel_size + 1) // 2, squeezed=squeezed, skip=False, parts=parts)
        self.conv_s2d, self.bn_s2d = parts.conv(din, hidden, 2, stride=2), parts.norm(hidden)

    def branch(self, x, train):
        """What is added to the input."""
        return super().branch(self.act(normalise(self.bn_s2d, self.conv_s2d(x), train)), train)


class MBConv(Residual):
    """An inverted bottleneck with `hidden` channels inside.

    Args:
      din, dout, hidden: channels in, out and between.
      kernel_size: of the depthwise convolution; a tuple for several side by side.
      squeezed: hidden channels of the squeeze-and-excitation, 0 for none.
      stride: of the depthwise convolution.
      skip: whether the input is added where it can be.
      group_width: channels that the depthwise convolution mixes.
      splits: numbers of convolutions side by side that widen and that narrow.
      num_experts: kernels of each convolution, mixed by weights that the mean of the input gives (conditional
        convolutions: Yang et al., 2019, arXiv:1904.04971); 0 for one that every example shares.
      parts: see `Parts`.
    """

    def __init__(
        self, din, dout, kernel_size, *, hidden, squeezed=0, stride=1, skip=True, group_width=1, splits=(1, 1),
        num_experts=0, parts,
    ):  # fmt: skip
        super().__init__(din, dout, stride, skip)
        self.act, self.shrink = parts.act, parts.shrink if stride > 1 else None
        stride, groups = 1 if self.shrink else stride, hidden // group_width
        mixed = dict(num_experts=num_experts) if num_experts else {}
        widen, narrow = ((1,) * count if count > 1 else 1 for count in splits)
        self.conv_pw, self.bn1 = parts.conv(din, hidden, widen, **mixed), parts.norm(hidden)
        self.conv_dw = parts.conv(hidden, hidden, kernel_size, stride=stride, groups=groups, **mixed)
        self.bn2, self.se = parts.norm(hidden), parts.squeeze(hidden, squeezed)
        self.conv_pwl, self.bn3 = parts.conv(hidden, dout, narrow, **mixed), parts.norm(dout)
        init = VarianceScaling(1 / 6, "fan_avg", "uniform")
        self.routing_fn = Linear(din, num_experts, init=init, dtype=self.conv_pw.dtype) if num_experts else None

    def branch(self, x, train):
        """What is added to the input."""
        weights = (jax.nn.sigmoid(self.routing_fn(x.mean((1, 2)))),) if self.routing_fn else ()
        x = self.act(normalise(self.bn1, self.conv_pw(x, *weights), train))
        x = self.act(normalise(self.bn2, self.conv_dw(x, *weights), train))
        x = self.shrink(x) if self.shrink else x
        return normalise(self.bn3, self.conv_pwl(self.se(x) if self.se else x, *weights), train)


class FusedMBConv(Residual):
    """One dense convolution for the first two of an inverted bottleneck: faster where accelerators have the units.

    EfficientNet-EdgeTPU (Gupta & Tan, 2019), EfficientNetV2 (Tan & Le, 2021, arXiv:2104.00298, figure 2).
    `group_width`: channels of a group of that convolution's results; 0 for no groups.
    """

    def __init__(self, din, dout, kernel_size, *, hidden, squeezed=0, stride=1, skip=True, group_width=0, parts):
        super().__init__(din, dout, stride, skip)
        self.act, self.shrink = parts.act, parts.shrink if stride > 1 else None
        stride, groups = 1 if self.shrink else stride, hidden // group_width if group_width else 1
        self.conv_exp = parts.conv(din, hidden, kernel_size, stride=stride, groups=groups)
        self.bn1, self.se = parts.norm(hidden), parts.squeeze(hidden, squeezed)
        self.conv_pwl, self.bn2 = parts.conv(hidden, dout, 1), parts.norm(dout)

    def branch(self, x, train):
        """What is added to the input."""
        x = self.act(normalise(self.bn1, self.conv_exp(x), train))
        x = self.shrink(x) if self.shrink else x
        return normalise(self.bn2, self.conv_pwl(self.se(x) if self.se else x), train)
