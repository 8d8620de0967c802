"""Convolution over the spatial axes of a channels-last map."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.grouped_conv import conv, grouped_conv
from vision_jax.layers.weighing import shift, weigh
from vision_jax.mesh import over_mesh, split_axes
from vision_jax.parameters import param, trunc_normal, zeros


class Conv(nnx.Module):
    """[B, H, W, Cin] -> [B, H', W', Cout], torch's Conv2d (cross-correlation, symmetric padding).

    Args:
      din, dout: channels in and out; `groups` divides both.
      kernel_size, stride, dilation: an int or one for each axis.
      padding: an int or one for each axis, on both sides; None keeps the size of an odd kernel at stride 1; "same" is
        TensorFlow's: the map comes out ceil(size / stride) large, and an odd element of padding lies at the far end.
      groups: number of groups of channels that do not mix; `groups=din` is depthwise.
      split: whether a grouped convolution's channels are split over the mesh's tensor axis, where those that it is
        given are; by whole groups.
      bias: whether a bias is added.
      init, bias_init: initialisers.
      dtype: dtype of the computation; the parameters are float32.
    """

    def __init__(
        self,
        din,
        dout,
        kernel_size,
        *,
        stride=1,
        padding=None,
        dilation=1,
        groups=1,
        split=False,
        bias=True,
        init=trunc_normal,
        bias_init=zeros,
        dtype=jnp.float32,
    ):
        kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), pair(dilation)
        if padding is None:
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel_size, self.dilation, strict=True))
        self.padding = "SAME" if padding == "same" else tuple((p, p) for p in pair(padding))
        self.groups, self.split, self.dtype = groups, split, dtype
        taps = kernel_size[0] * kernel_size[1]
        fans = (taps * din // groups, taps * dout // groups)
        self.kernel = param((*kernel_size, din // groups, dout), init, fans)
        self.bias = param((dout,), bias_init, fans) if bias else None

    def __call__(self, x):
        if self.groups == 1:
            how = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
            y = weigh(functools.partial(conv, **how), x, self.filters(), self.dtype)
        else:
            x, kernel = x.astype(self.dtype), self.filters().astype(self.dtype)
            maps, kernels = (("batch", None, None, "channels"), (None, None, None, "channels"))
            sizes = {"batch": [x.shape[0]], "channels": [self.groups]} if self.split else {"batch": [x.shape[0]]}
            y = over_mesh(self._grouped, (x, kernel), (maps, kernels), maps, split_axes(sizes))
        return y if self.bias is None else shift(y, self.bias[...])

    def filters(self):
        """The kernel as it is applied."""
        return self.kernel[...]

    def pads(self, size):
        """((above, below), (left, right)) for a map of this height and width."""
        if self.padding != "SAME":
            return self.padding
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel.shape[-4:], strict=False)]
        return tuple(jax.lax.padtype_to_pads(size, spans, self.stride, self.padding))

    def _grouped(self, x, kernel):
        groups = x.shape[-1] // kernel.shape[2]  # where a device has a share of the channels, its share of the groups
        return grouped_conv(x, kernel, self.stride, self.pads(x.shape[1:3]), self.dilation, groups)


def pair(x):
    """An int for both axes, or one for each -> a tuple of two."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x, x)
