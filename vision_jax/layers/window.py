"""Attention inside the windows of a map. Partition, cyclic shift and its mask are in `kernels.window_attention`."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.functional import offer
from vision_jax.kernels import window_attention
from vision_jax.layers.attention import QKV
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.relative_bias import relative_bias
from vision_jax.layers.resample import resample_relative_bias
from vision_jax.parameters import param, trunc_normal


class WindowAttention(nnx.Module):
    """Self-attention inside windows with a learned bias for each relative position, [B, H, W, C] -> [B, H, W, C].

    softmax(q k^T / sqrt(d) + bias) v (Swin: Liu et al., 2021, arXiv:2103.14030, equation 4).

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      window_size: (height, width) of a window, in tokens.
      shift: (rows, columns) by which the windows are shifted.
      relative_bias: whether there is that bias.
      proj_drop: dropout of the result.
      qkv, linear: what makes the projections, a `QKV` and a `Linear`.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(
        self, dim, num_heads, window_size, shift=(0, 0), *, relative_bias=True, proj_drop=0.0, qkv=QKV, linear=Linear,
        dtype=jnp.float32,
    ):  # fmt: skip
        self.window_size, self.shift, self.proj_drop = tuple(window_size), tuple(shift), proj_drop
        h, w = self.window_size
        self.qkv = qkv(dim, num_heads, dim // num_heads, dtype=dtype)
        table = param(((2 * h - 1) * (2 * w - 1), num_heads), trunc_normal) if relative_bias else None
        self.relative_position_bias_table = table
        self.proj = linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(pad_to_windows(x, self.window_size, self.shift))
        attend = functools.partial(
            window_attention, q, k, window_size=self.window_size, shift=self.shift, **self.biases()
        )
        offer(self, "probabilities", lambda: window_probabilities(attend, q, x.shape[1:3]))
        out = attend(v)
        out = crop_windows(out, x.shape[1:3], self.shift)
        return dropout(self.proj(out.reshape(x.shape)), self.proj_drop, train)

    def biases(self):
        """What the scores gain, as keywords of `window_attention`."""
        table = self.relative_position_bias_table
        return {} if table is None else {"bias": relative_bias(table[...], self.window_size)}

    def resample(self, leaf, array):
        """A parameter made for another window, at this one's."""
        return resample_relative_bias(array, self.window_size) if leaf == "relative_position_bias_table" else array


class HeadsInnermostWindowAttention(WindowAttention):
    """The same; in weight files of the reference the projection's input has heads innermost: NesT's code merges so."""


def window_probabilities(attend, q, size):
    """The attention weights of every query, [B, H, W, heads, N]: its window's N tokens are the keys, row by row.

    The weights are what the operator makes of values that tell each key's place in its window: of the very operator
    that attends, with its shift, bias and mask.

    Args:
      attend: `window_attention` with everything but the values given: a `functools.partial` of keywords.
      q: the queries, of the padded map.
      size: (H, W) of the map without its padding.
    """
    (h, w), shift = attend.keywords["window_size"], attend.keywords["shift"]
    rows, columns = ((np.arange(n) - s) % n % m for n, s, m in zip(q.shape[1:3], shift, (h, w), strict=True))
    places = np.eye(h * w, dtype=jnp.promote_types(q.dtype, jnp.float32))[rows[:, None] * w + columns]
    places = jnp.broadcast_to(places[None, :, :, None], (*q.shape[:4], h * w))
    return crop_windows(attend(places, implementation="xla"), size, shift)


def pad_to_windows(x, window_size, shift):
    """Zeros below and to the right of a map [B, H, W, ...] that windows do not tile, before the projection to q, k, v.

    The padded tokens are keys with the projection's bias. As in timm the map is rolled before it is padded: the zeros
    lie below and to the right of the shifted map (the official detection code pads first, which is another result).
    The operator rolls what it gets, so this undoes its roll of the padded map.
    """
    pads = [-n % w for n, w in zip(x.shape[1:3], window_size, strict=True)]
    if not any(pads):
        return x
    x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
    x = jnp.pad(x, ((0, 0), (0, pads[0]), (0, pads[1]), *((0, 0),) * (x.ndim - 3)))
    return jnp.roll(x, shift, (1, 2))


def crop_windows(x, size, shift):
    """The inverse of `pad_to_windows`: the map of `size` = (H, W) without its padding."""
    if x.shape[1:3] == tuple(size):
        return x
    x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))[:, : size[0], : size[1]]
    return jnp.roll(x, shift, (1, 2))
