"""Inverted bottlenecks: wide depthwise convolutions between narrow ends."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import avg_pool
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.parameters import kaiming_normal, zeros


class PreNormMBConv(nnx.Module):
    """x + project(SE(depthwise(expand(norm(x))))), [B, H, W, din] -> [B, H/stride, W/stride, dout].

    MBConv (MobileNetV2: Sandler et al., 2018, arXiv:1801.04381) with squeeze-and-excitation, its norm first as in
    CoAtNet (Dai et al., 2021, arXiv:2106.04803, equation 5) and MaxViT.

    Args:
      din, dout: channels in and out.
      hidden: channels between.
      squeezed: channels of the squeeze-and-excitation.
      stride: 1, or 2: in the depthwise convolution, and by averaging in the shortcut.
      act: activation.
      epsilon: of the batch norms.
      padding: of the depthwise convolution and the averaging: None for symmetric, or "same".
      bias: of the last projection and of the shortcut's.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, *, hidden, squeezed, stride=1, act, epsilon=1e-5, padding=None, bias=True, dtype=jnp.float32
    ):
        self.act = act
        norm = dict(epsilon=epsilon, dtype=dtype)
        kw = dict(init=kaiming_normal, dtype=dtype)
        self.shortcut = Shrink(din, dout, same=padding == "same", bias=bias, **kw) if stride == 2 else None
        self.pre_norm = BatchNorm(din, **norm)
        self.conv1_1x1 = PointwiseConv(din, hidden, bias=False, **kw)
        self.norm1 = BatchNorm(hidden, **norm)
        padding = padding if stride == 2 else None
        self.conv2_kxk = Conv(hidden, hidden, 3, stride=stride, padding=padding, groups=hidden, bias=False, **kw)
        self.norm2 = BatchNorm(hidden, **norm)
        self.se = SqueezeExcite(hidden, squeezed, act=jax.nn.silu, bias_init=zeros, **kw)
        self.conv3_1x1 = PointwiseConv(hidden, dout, bias=bias, **kw)

    def __call__(self, x, train=None):
        y = self.conv1_1x1(self.pre_norm(x, train))
        y = self.conv2_kxk(self.act(self.norm1(y, train)))
        y = self.conv3_1x1(self.se(self.act(self.norm2(y, train))))
        return (self.shortcut(x) if self.shortcut else x) + drop_path(y, train)


class Shrink(nnx.Module):
    """Averages two by two, and projects where the channels change: [B, H, W, din] -> [B, H/2, W/2, dout].

    A last row or column left over is dropped, or with `same` averaged with zeros.
    """

    def __init__(self, din, dout, *, same, bias, init, dtype):
        self.same = same
        self.expand = PointwiseConv(din, dout, bias=bias, init=init, dtype=dtype) if din != dout else None

    def __call__(self, x):
        if self.same:
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = avg_pool(x, 2, stride=2)
        return self.expand(x) if self.expand else x
