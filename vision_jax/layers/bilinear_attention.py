"""Blocks of a map mixed along both axes by matrices that are made of the map."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv import Conv
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import dropout
from vision_jax.layers.pooling import max_pool
from vision_jax.parameters import kaiming_normal


class BilinearTransform(nnx.Module):
    """P x Q for each group of channels, [B, H, W, C] -> [B, H, W, C]: the blocks of a map mixed by rows and columns.

    P and Q are `size` x `size`, positive, their rows and columns normalised to a sum of 1, and come from the largest
    values of each row and each column of blocks.

    Args:
      dim: channels.
      size: blocks along each axis; divides H and W.
      groups: number of groups of channels that share P and Q.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, size, groups, *, dtype=jnp.float32):
        self.size, self.groups, kw = size, groups, dict(init=kaiming_normal, dtype=dtype)
        conv = functools.partial(ConvNorm, act=jax.nn.relu, **kw)
        self.conv1, self.conv2 = conv(dim, groups), conv(dim, dim)
        self.conv_p = Conv(groups, size * size * groups, (size, 1), padding=0, **kw)
        self.conv_q = Conv(groups, size * size * groups, (1, size), padding=0, **kw)

    def __call__(self, x, train=None):
        (B, H, W, C), n, g = x.shape, self.size, self.groups
        seen, bands = self.conv1(x, train), ((H // n, W), (H, W // n))
        rows, columns = (max_pool(seen, band, stride=band) for band in bands)
        p, q = self.conv_p(rows), self.conv_q(columns)
        p, q = (jax.nn.sigmoid(y.reshape(B, g, n, n)) for y in (p, q))
        p, q = p / p.sum(3, keepdims=True), q / q.sum(2, keepdims=True)
        y = jnp.einsum("bgij,bjtlugc->bitlugc", p, x.reshape(B, n, H // n, n, W // n, g, C // g))
        y = jnp.einsum("bitlugc,bglm->bitmugc", y, q)
        return self.conv2(y.reshape(B, H, W, C), train)


class BilinearAttention(nnx.Module):
    """x plus its bilinear transform in fewer channels, [B, H, W, C] -> [B, H, W, C].

    Bilinear attentional transforms (BAT: Chi et al., 2020, "Non-Local Neural Networks With Grouped Bilinear Attentional
    Transforms", section 3), as timm has them.

    Args:
      dim: channels.
      size: blocks along each axis of the map; divides its sides.
      drop: rate at which whole channels of what is added are dropped.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, size, *, drop=0.0, dtype=jnp.float32):
        inner, self.drop = round_channels(dim / 4), drop
        conv = functools.partial(ConvNorm, act=jax.nn.relu, init=kaiming_normal, dtype=dtype)
        self.conv1, self.conv2 = conv(dim, inner), conv(inner, dim)
        self.ba = BilinearTransform(inner, size, 2, dtype=dtype)

    def __call__(self, x, train=None):
        y = self.conv2(self.ba(self.conv1(x, train), train), train)
        return x + y * dropout(jnp.ones_like(y[:, :1, :1]), self.drop, train)
