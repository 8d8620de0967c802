"""What the scores of a window's queries and keys gain from their relative positions: [heads, N, N] for N tokens."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.interpolate import bicubic_antialiased
from vision_jax.layers.linear import Linear
from vision_jax.layers.position import distance_index, relative_index
from vision_jax.layers.resample import resample_relative_bias
from vision_jax.parameters import Normal, param, trunc_normal, xavier_uniform, zeros

NEAR_ZERO = Normal(1e-6)


def relative_bias(table, window_size):
    """A table of relative positions [(2h-1) (2w-1), heads] -> a bias for each query and key, [heads, N, N]."""
    return table[relative_index(*window_size)].transpose(2, 0, 1)


class RelativeBias(nnx.Module):
    """A table for the query's position minus the key's, [(2h-1) (2w-1), heads].

    Swin (Liu et al., 2021, arXiv:2103.14030, equation 4).

    Args:
      num_heads: number of heads.
      window_size: (h, w) of the window, in tokens.
    """

    def __init__(self, num_heads, window_size):
        self.window_size, (h, w) = window_size, window_size
        self.relative_position_bias_table = param(((2 * h - 1) * (2 * w - 1), num_heads), trunc_normal)

    def __call__(self, train=None):
        return relative_bias(self.relative_position_bias_table[...], self.window_size)

    def resample(self, leaf, array):
        """A table made for another window, at this one's."""
        return resample_relative_bias(array, self.window_size)


class ClassRelativeBias(nnx.Module):
    """The same with a class token before the patches, () -> [heads, 1 + N, 1 + N] (BEiT: arXiv:2106.08254).

    Three rows more, [(2h-1) (2w-1) + 3, heads]: of the class token for the patches, of the patches for it, and of it
    for itself.
    """

    def __init__(self, num_heads, window_size):
        self.window_size, (h, w) = window_size, window_size
        self.relative_position_bias_table = param(((2 * h - 1) * (2 * w - 1) + 3, num_heads), zeros)

    def __call__(self, train=None):
        return self.relative_position_bias_table[...][class_relative_index(*self.window_size)].transpose(2, 0, 1)

    def resample(self, leaf, array):
        """A table made for another window, at this one's; the class token's rows stay."""
        return np.concatenate([resample_relative_bias(array[:-3], self.window_size), array[-3:]])


@functools.cache
def class_relative_index(height, width):
    """`relative_index` with a class token before the patches, [1 + N, 1 + N]."""
    offsets = (2 * height - 1) * (2 * width - 1)
    index = np.pad(relative_index(height, width), ((1, 0), (1, 0)))
    index[0], index[1:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


class RelativeBiasMap(nnx.Module):
    """A table for the key's position minus the query's, [heads, 2h-1, 2w-1], as the official MaxViT keeps it.

    Args:
      num_heads: number of heads.
      window_size: (h, w) of the window, in tokens.
    """

    def __init__(self, num_heads, window_size):
        self.window_size, (h, w) = window_size, window_size
        self.relative_position_bias_table = param((num_heads, 2 * h - 1, 2 * w - 1), Normal(0.02))

    def __call__(self, train=None):
        table = self.relative_position_bias_table[...]
        return table.reshape(len(table), -1)[:, relative_index(*self.window_size).T]

    def resample(self, leaf, array):
        """A table made for another window, at this one's."""
        flat = resample_relative_bias(array.transpose(1, 2, 0).reshape(-1, len(array)), self.window_size)
        h, w = self.window_size
        return flat.reshape(2 * h - 1, 2 * w - 1, -1).transpose(2, 0, 1) if len(flat) != array[0].size else array


class DistanceBias(nnx.Module):
    """A table for how far query and key are apart along each axis, [heads, h w]: the attention bias of LeViT.

    Graham et al., 2021 (arXiv:2104.01136). Called, it gives [heads, Nq, Nk].

    Args:
      num_heads: number of heads.
      size: (h, w) of the keys' map.
      stride: queries are every so many pixels of it along each axis.
    """

    def __init__(self, num_heads, size, *, stride=1):
        self.size, self.stride = tuple(size), stride
        self.attention_biases = param((num_heads, self.size[0] * self.size[1]), zeros)

    def __call__(self):
        return self.attention_biases[...][:, distance_index(*self.size, self.stride)]

    def resample(self, leaf, array):
        """A table made for another, square map, at this one's: bicubic, antialiased, as in timm's TinyViT."""
        side = math.isqrt(array.shape[1])
        if side * side != array.shape[1] or (side, side) == self.size:
            return array
        table = bicubic_antialiased(array.T.reshape(1, side, side, -1), self.size)
        return np.asarray(table).reshape(-1, len(array)).T


class RelativeBiasMlp(nnx.Module):
    """A small network of the query's position minus the key's, on a logarithmic scale: sign(d) log(1 + |d|).

    Continuous relative positions (Swin V2: Liu et al., 2022, arXiv:2111.09883, section 3.3) as timm has them in its own
    models: distances are counted in tokens.

    Args:
      num_heads: number of heads.
      window_size: (h, w) of the window, in tokens.
      prefix: tokens before the window's, which gain and give nothing.
      hidden: hidden channels.
      drop: their dropout.
      init, bias_init: initialisers of both maps.
      dtype: dtype of the computation.
    """

    def __init__(
        self, num_heads, window_size, *, prefix=0, hidden=512, drop=0.0, init=xavier_uniform, bias_init=NEAR_ZERO,
        dtype=jnp.float32,
    ):  # fmt: skip
        self.window_size, self.prefix = window_size, prefix
        self.mlp = OffsetMlp(hidden, num_heads, drop=drop, init=init, bias_init=bias_init, dtype=dtype)

    def __call__(self, train=None):
        bias = relative_bias(self.mlp(log_offsets(*self.window_size), train), self.window_size)
        return jnp.pad(bias, ((0, 0), (self.prefix, 0), (self.prefix, 0))) if self.prefix else bias


class OffsetMlp(nnx.Module):
    """Offsets [M, 2] -> [M, heads]."""

    def __init__(self, hidden, num_heads, *, drop, **linear):
        self.drop = drop
        self.fc1, self.fc2 = Linear(2, hidden, **linear), Linear(hidden, num_heads, **linear)

    def __call__(self, offsets, train=None):
        return self.fc2(dropout(jax.nn.relu(self.fc1(jnp.asarray(offsets))), self.drop, train))


@functools.cache
def log_offsets(height, width):
    """Relative positions of a window on a logarithmic scale, [(2h-1) (2w-1), 2], in `relative_index`'s order."""
    offsets = np.stack(np.mgrid[1 - height : height, 1 - width : width], axis=-1).reshape(-1, 2)
    return np.sign(offsets) * np.log1p(np.abs(offsets))
