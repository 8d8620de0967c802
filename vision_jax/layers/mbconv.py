"""Inverted bottlenecks: wide depthwise convolutions between narrow ends."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import avg_pool, max_pool
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
      stride: 1, or 2: in the depthwise convolution, and in the shortcut by pooling.
      act: activation.
      pre_act: whether it follows the first norm too.
      pool: of the shortcut, as `halved` has it.
      shrink_first: average the normalised input with a stride, in place of that of the depthwise convolution.
      se_first: squeeze and excite before the norm after the depthwise convolution, not after its activation.
      se_act: activation of the squeeze-and-excitation.
      epsilon: of the batch norms.
      padding: of the depthwise convolution and the averaging: None for symmetric, or "same".
      bias: of the last projection and of the shortcut's.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, *, hidden, squeezed, stride=1, act, pre_act=False, pool="avg", shrink_first=False,
        se_first=False, se_act=jax.nn.silu, epsilon=1e-5, padding=None, bias=True, dtype=jnp.float32,
    ):  # fmt: skip
        self.act, self.pre_act, self.shrink_first = act, pre_act, shrink_first and stride == 2
        norm = dict(epsilon=epsilon, dtype=dtype)
        kw = dict(init=kaiming_normal, dtype=dtype)
        self.shortcut = Shrink(din, dout, pool=pool, same=padding == "same", bias=bias, **kw) if stride == 2 else None
        stride = 1 if shrink_first else stride
        self.pre_norm = BatchNorm(din, **norm)
        self.conv1_1x1 = PointwiseConv(din, hidden, bias=False, **kw)
        self.norm1 = BatchNorm(hidden, **norm)
        padding = padding if stride == 2 else None
        self.conv2_kxk = Conv(hidden, hidden, 3, stride=stride, padding=padding, groups=hidden, bias=False, **kw)
        self.norm2 = BatchNorm(hidden, **norm)
        se = SqueezeExcite(hidden, squeezed, act=se_act, bias_init=zeros, **kw)
        self.se_early, self.se = (se, None) if se_first else (None, se)
        self.conv3_1x1 = PointwiseConv(hidden, dout, bias=bias, **kw)

    def __call__(self, x, train=None):
        y = self.pre_norm(x, train)
        y = self.act(y) if self.pre_act else y
        y = self.conv1_1x1(halved(y) if self.shrink_first else y)
        y = self.conv2_kxk(self.act(self.norm1(y, train)))
        y = self.act(self.norm2(self.se_early(y) if self.se_early else y, train))
        y = self.conv3_1x1(self.se(y) if self.se else y)
        return (self.shortcut(x) if self.shortcut else x) + drop_path(y, train)


class Shrink(nnx.Module):
    """Halves the map, and projects where the channels change: [B, H, W, din] -> [B, H/2, W/2, dout].

    `pool` and `same` as `halved` has them; the others are the projection's.
    """

    def __init__(self, din, dout, *, pool="avg", same=False, **projection):
        self.pool, self.same = pool, same
        self.expand = PointwiseConv(din, dout, **projection) if din != dout else None

    def __call__(self, x):
        x = halved(x, self.pool, self.same)
        return self.expand(x) if self.expand else x


def halved(x, pool="avg", same=False):
    """[B, H, W, C] -> [B, H/2, W/2, C]: the mean of two by two pixels, or with "max" the largest of three by three.

    Of the mean a last row or column left over is dropped, or with `same` averaged with zeros.
    """
    if pool == "max":
        return max_pool(x, 3, stride=2, padding=1)
    if same:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    return avg_pool(x, 2, stride=2)
