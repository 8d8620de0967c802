"""Blocks of MobileNetV4 (Qin et al., 2024, arXiv:2404.10518): [B, H, W, din] -> [B, H/stride, W/stride, dout]."""

import functools

from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.inverted_residual import Residual
from vision_jax.layers.multi_query_attention import MultiQueryAttention
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.scale import LayerScale
from vision_jax.parameters import kaiming_normal


class UniversalBottleneck(Residual):
    """An inverted bottleneck with depthwise convolutions, or none, before it and in its middle (section 3, figure 4).

    Args:
      din, dout, hidden: channels in, out and between.
      kernel_sizes: of the depthwise convolutions before and between; 0 for none.
      stride: of the one between, or of the first where there is none.
      skip: whether the input is added where it can be.
      act: activation.
      shrink: map -> half of it, in place of the stride of the convolution between, or None.
      layer_scale: initial value of the branch's scale, or None for none.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, *, hidden, kernel_sizes, stride=1, skip=True, act, shrink=None, layer_scale=None, dtype
    ):
        super().__init__(din, dout, stride, skip)
        start, mid = kernel_sizes
        conv = functools.partial(ConvNorm, init=kaiming_normal, dtype=dtype)
        self.shrink = shrink if stride > 1 and mid else None
        first = 1 if mid else stride
        self.dw_start = conv(din, din, start, stride=first, groups=din) if start else None
        self.pw_exp = conv(din, hidden, act=act)
        stride = 1 if self.shrink else stride
        self.dw_mid = conv(hidden, hidden, mid, stride=stride, groups=hidden, act=act) if mid else None
        self.pw_proj = conv(hidden, dout)
        self.layer_scale = LayerScale(dout, layer_scale, dtype=dtype) if layer_scale is not None else None

    def branch(self, x, train):
        """What is added to the input."""
        x = self.dw_start(x, train) if self.dw_start else x
        x = self.pw_exp(x, train)
        x = self.dw_mid(x, train) if self.dw_mid else x
        x = self.pw_proj(self.shrink(x) if self.shrink else x, train)
        return self.layer_scale(x) if self.layer_scale else x


class MobileAttention(Residual):
    """Multi-query attention of what a batch norm gives (section 4)."""

    def __init__(self, dim, *, layer_scale=None, dtype, **attention):
        super().__init__(dim, dim, 1, True)
        self.norm, self.attn = BatchNorm(dim, dtype=dtype), MultiQueryAttention(dim, dtype=dtype, **attention)
        self.layer_scale = LayerScale(dim, layer_scale, dtype=dtype) if layer_scale is not None else None

    def branch(self, x, train):
        """What is added to the input."""
        x = self.attn(self.norm(x, train), train)
        return self.layer_scale(x) if self.layer_scale else x
