"""Residual bottlenecks whose layers are convolutions with a batch norm each, plain or inverted."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.bilinear_attention import BilinearAttention
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import drop_path
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import avg_pool
from vision_jax.mesh import constrain_batch
from vision_jax.parameters import kaiming_normal, ones, zeros


class Bottleneck(nnx.Module):
    """A 1x1 convolution, a 3x3 or self-attention, a 1x1, beside a shortcut: [B, H, W, din] -> [B, H/r, W/r, dout].

    ResNet's (He et al., 2016, arXiv:1512.03385, figure 5), or with `inverted` MobileNetV2's (arXiv:1801.04381): it ends
    without an activation, and has no shortcut where shapes change.

    Args:
      din, dout, hidden: channels in, out and between.
      stride: of the middle layer; `pool`: in place of one in self-attention, windows that its result is averaged over.
      groups: of the 3x3 convolution.
      act: the activation.
      attn: a module after the 3x3 convolution, as squeeze-and-excitation, or None.
      mixer: the self-attention in its place, called as mixer(x, train), or None.
      inverted: see above.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, hidden, *, stride=1, pool=1, groups=1, act, attn=None, mixer=None, inverted=False,
        dtype=jnp.float32,
    ):  # fmt: skip
        kw, changes = dict(init=kaiming_normal, dtype=dtype), stride > 1 or din != dout
        self.act, self.adds, self.ends_linear = act, not (changes and inverted), inverted
        self.shortcut = ConvNorm(din, dout, stride=stride, **kw) if changes and self.adds else None
        self.conv1_1x1 = ConvNorm(din, hidden, act=act, **kw)
        self.mixes, self.pool = mixer is not None, pool
        if mixer:
            self.self_attn, self.post_attn = mixer, BatchNorm(hidden, dtype=dtype)
        else:
            self.conv2_kxk = ConvNorm(hidden, hidden, 3, stride=stride, groups=groups, act=act, **kw)
            self.attn = attn
        self.conv3_1x1 = ConvNorm(hidden, dout, scale_init=zeros if self.adds else ones, **kw)

    def __call__(self, x, train=None):
        y = self.conv1_1x1(x, train)
        if self.mixes:
            y = self.self_attn(y, train)
            y = avg_pool(y, self.pool, stride=self.pool) if self.pool > 1 else y
            y = self.act(self.post_attn(y, train))
        else:
            y = self.conv2_kxk(y, train)
            if self.attn:
                y = self.attn(y, train) if isinstance(self.attn, BilinearAttention) else self.attn(y)
        y = drop_path(self.conv3_1x1(y, train), train)
        if self.adds:
            y = y + (self.shortcut(x, train) if self.shortcut else x)
        return tap(self, "output", constrain_batch(y if self.ends_linear else self.act(y)))
