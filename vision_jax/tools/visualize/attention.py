"""What each query attends to, in every layer that has attention weights over places of an image.

A layer's weights come as it makes them, captured at its tap `probabilities`: over all tokens (ViT and whoever shares
its attention), over a window (Swin), over the pixel's neighbours (NAT). `AttentionMap` tells for each weight where its
key lies, which makes one thing of them.
"""

import fnmatch
import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from vision_jax.errors import InputError, unknown
from vision_jax.functional import apply, split
from vision_jax.kernels.neighborhood_attention.windows import axis_windows
from vision_jax.layers.channel_attention import ChannelAttention
from vision_jax.layers.neighborhood import NeighborhoodAttention
from vision_jax.layers.window import WindowAttention
from vision_jax.models.swin_v2 import CosineWindowAttention
from vision_jax.names import any_block
from vision_jax.tools.visualize.grids import check_unrolled, grid_of, in_order


class AttentionMap(NamedTuple):
    """The attention weights of one layer.

    Attributes:
      name: of the layer, as "blocks.0.attn".
      weights: [B, heads, Nq, K], in 0..1; each query's sum to one. Queries are the tokens, those of a map row by row.
      keys: the token that each of a query's K weights belongs to, int [Nq, K]; -1 for one beyond the map.
      grid: (rows, columns) of the tokens that lie on the image.
      prefix: tokens before them: class token, registers.
    """

    name: str
    weights: np.ndarray
    keys: np.ndarray
    grid: tuple
    prefix: int

    def token(self, query):
        """The number of a query's token: "class", or (row, column) on the map.

        Raises:
          InputError: a query that is not there.
        """
        if query == "class":
            if not self.prefix:
                raise InputError(f"query='class': {self.name} has no class token: (row, column) in its {self.grid} map")
            return 0
        if len(query) != 2 or not all(0 <= place < side for place, side in zip(query, self.grid, strict=True)):
            raise InputError(f"query={query}: 'class', or (row, column) in the {self.grid} map of {self.name}")
        return self.prefix + query[0] * self.grid[1] + query[1]

    def seen_from(self, query, image=0):
        """The weights of one query, [heads, rows, columns]; NaN where it cannot look.

        Args:
          query: "class", or (row, column) on the map.
          image: which one of the batch.
        """
        token = self.token(query)
        seen = np.full((self.weights.shape[1], self.prefix + math.prod(self.grid)), np.nan)
        inside = self.keys[token] >= 0
        seen[:, self.keys[token][inside]] = self.weights[image][:, token, inside]
        return seen[:, self.prefix :].reshape(-1, *self.grid)

    def mean_matrix(self, image=0):
        """The mean over the heads as a matrix, query by key, [N, N]; rows sum to one, less keys beyond the map."""
        mean = self.weights[image].mean(axis=0)
        matrix = np.zeros((len(mean), len(mean)), mean.dtype)
        queries, slots = np.nonzero(self.keys >= 0)
        matrix[queries, self.keys[queries, slots]] = mean[queries, slots]
        return matrix


def attention_maps(model, images, layers="*"):
    """The attention weights of a model's layers, from the first to the last.

    Args:
      model: a model with parameters.
      images: [B, H, W, C], normalised.
      layers: a pattern of their names, as "stages.0.*"; all by default.

    Returns:
      A list of `AttentionMap`.

    Raises:
      InputError: no layer of this model has weights over places, or none matches; blocks that are scanned.
    """
    placed = placed_keys(model, images)
    if not placed:
        raise InputError(f"{model.name} has no layer with attention weights over places of the image")
    names = fnmatch.filter(placed, layers)
    if not names:
        raise unknown("attention layer", layers, placed)
    static, variables = split(model)
    wanted = [f"{name}.probabilities" for name in names]
    captured = jax.jit(lambda v, x: apply(static, v, x, capture=wanted)[1]["captured"])(variables, images)
    return [_attention_map(name, captured[tap], *placed[name]) for name, tap in zip(names, wanted, strict=True)]


def _attention_map(name, value, keys, grid, prefix):
    value = np.asarray(value, np.float32)
    if value.ndim == 5:  # a map's: [B, H, W, heads, K]
        value = value.reshape(len(value), -1, *value.shape[3:]).swapaxes(1, 2)
    return AttentionMap(name, value, keys, grid, prefix)


def placed_keys(model, images):
    """{layer: (keys, grid, prefix), as in `AttentionMap`} of the layers with attention over places; nothing is run.

    Raises:
      InputError: blocks that are scanned.
    """
    check_unrolled(model)
    static, variables = split(model)
    taps = jax.eval_shape(lambda v, x: apply(static, v, x, capture="*")[1]["captured"], variables, images)
    modules = {any_block(path): part for path, part in nnx.iter_modules(model)}
    found = {}
    for tap in in_order(taps):
        name, _, what = tap.rpartition(".")
        place = _place(model, name, modules[name], taps[tap].shape, images) if what == "probabilities" else None
        if place is not None:
            found[name] = place
    return found


def _place(model, name, module, shape, images):
    if isinstance(module, WindowAttention | CosineWindowAttention):
        return window_keys(shape[1:3], module.window_size, module.shift), shape[1:3], 0
    if isinstance(module, NeighborhoodAttention):
        return neighborhood_keys(shape[1:3], module.kernel_size, module.dilation), shape[1:3], 0
    if len(shape) != 4 or shape[2] != shape[3] or isinstance(module, ChannelAttention):
        return None  # fewer keys than queries, or weights of channels
    place = grid_of(model, name, shape[2], images.shape[1:3])
    return place and (np.broadcast_to(np.arange(shape[3]), shape[2:]), *place)


@functools.cache
def window_keys(size, window_size, shift):
    """The keys of each pixel of a map under (shifted) windows, int [H W, N], as `layers.window` lays them.

    -1 stands for the padding beyond the map, which has no pixel.
    """
    axes = []
    for n, window, s in zip(size, window_size, shift, strict=True):
        rolled = (np.arange(n) - s) % n
        keys = rolled[:, None] // window * window + np.arange(window)
        axes.append(np.where(keys < n, (keys + s) % n, -1))
    return _pairs(*axes, size)


@functools.cache
def neighborhood_keys(size, kernel_size, dilation):
    """The neighbours of each pixel of a map, int [H W, K], as `layers.neighborhood` lays them; -1 for its padding."""
    axes = []
    for n, kernel, d in zip(size, kernel_size, dilation, strict=True):
        padded = max(n, kernel * d)
        first = axis_windows(padded, kernel, 1, d, False, "shift").first[:n]
        keys = (first[:, None] + np.arange(kernel)) * d + np.arange(n)[:, None] % d
        axes.append(np.where(keys < n, keys, -1))
    return _pairs(*axes, size)


def _pairs(rows, columns, size):
    """Keys along the axes [H, h], [W, w] -> keys of the pixels [H W, h w]."""
    y, x = rows[:, None, :, None], columns[None, :, None, :]
    keys = np.where((y >= 0) & (x >= 0), y * size[1] + x, -1)
    return keys.reshape(size[0] * size[1], -1)
