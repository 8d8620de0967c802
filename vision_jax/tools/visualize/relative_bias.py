"""What a layer adds to its scores for where a key lies, seen from the query."""

import fnmatch
from typing import NamedTuple

import numpy as np
from flax import nnx

from vision_jax.errors import InputError, unknown
from vision_jax.layers.neighborhood import NeighborhoodAttention
from vision_jax.layers.relative_bias import RelativeBias, RelativeBiasMap, RelativeBiasMlp, relative_bias
from vision_jax.layers.window import WindowAttention
from vision_jax.models.swin_v2 import ContinuousBias
from vision_jax.names import any_block
from vision_jax.tools.visualize.grids import check_unrolled, in_order

OF_WINDOWS = (RelativeBias, RelativeBiasMap, RelativeBiasMlp, ContinuousBias)  # called, they give [heads, N, N]


class BiasMap(NamedTuple):
    """The bias of one layer.

    Attributes:
      name: of the layer.
      bias: [heads, 2 h - 1, 2 w - 1], for the key's rows and columns below and right of the query, from 1 - h and
        1 - w on. A softmax does not see what is added to all of a query's scores, so only differences mean anything.
      step: distance of neighbouring entries, in tokens: the dilation.
    """

    name: str
    bias: np.ndarray
    step: tuple


def relative_biases(model, layers="*"):
    """The relative-position biases of a model's layers, from the first to the last.

    Args:
      model: a model with parameters: Swin, Swin V2, NAT, DiNAT, MaxViT and others with such tables.
      layers: a pattern of their names; all by default.

    Returns:
      A list of `BiasMap`.

    Raises:
      InputError: the model has none, or none matches; blocks that are scanned.
    """
    check_unrolled(model)
    found = {}
    for path, module in nnx.iter_modules(model):
        bias = _bias(module)
        if bias is not None:
            name = any_block(path)
            found[name] = BiasMap(name, bias, getattr(module, "dilation", (1, 1)))
    if not found:
        raise InputError(f"{model.name} has no bias for relative positions")
    names = fnmatch.filter(in_order(found), layers)
    if not names:
        raise unknown("layer", layers, found)
    return [found[name] for name in names]


def has_bias(model):
    """Whether a model has any; nothing is run."""
    return any(isinstance(module, OF_WINDOWS) or _has_table(module) for _, module in nnx.iter_modules(model))


def _has_table(module):
    if isinstance(module, WindowAttention):
        return module.relative_position_bias_table is not None
    return isinstance(module, NeighborhoodAttention)


def _bias(module):
    if isinstance(module, OF_WINDOWS):
        prefix = getattr(module, "prefix", 0)
        return by_offset(module()[:, prefix:, prefix:], module.window_size)
    if not _has_table(module):
        return None
    if isinstance(module, NeighborhoodAttention):
        return np.asarray(module.rpb[...], np.float32)
    return by_offset(relative_bias(module.relative_position_bias_table[...], module.window_size), module.window_size)


def by_offset(bias, window_size):
    """A bias for each query and key of a window [heads, N, N] -> for each offset from query to key.

    Returns:
      [heads, 2 h - 1, 2 w - 1].
    """
    (h, w), bias = window_size, np.asarray(bias, np.float32)
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[:h, :w])
    out = np.zeros((len(bias), 2 * h - 1, 2 * w - 1), np.float32)
    out[:, rows - rows[:, None] + h - 1, columns - columns[:, None] + w - 1] = bias
    return out
