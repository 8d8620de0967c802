"""How reference implementations lay out each layer's parameters: one table for torch, one for Flax Linen.

A table maps a layer type to its leaves that differ from ours; what it does not list keeps name and layout, as biases
and tables of positions do. A leaf is named from the layer that the entry is for: "kernel", or "proj.kernel" for one of
a layer within it; the outermost layer that lists a leaf decides. A new layer type is one entry here.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import nnx

from vision_jax.layers.affine import Affine
from vision_jax.layers.attention import (
    KV,
    QKV,
    Attention,
    ConvQKV,
    FreeKeysQKV,
    HeadsFirstConvQKV,
    HeadsFirstQKV,
    Values,
    WideQKV,
)
from vision_jax.layers.attention_pool import AttentionPoolLatent
from vision_jax.layers.batch_channel_norm import BatchChannelNorm
from vision_jax.layers.cond_conv import CondConv
from vision_jax.layers.conv import Conv
from vision_jax.layers.efficient_channel_attention import EfficientChannelAttention
from vision_jax.layers.glu import GLU
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.lambda_layer import LocalLambdas
from vision_jax.layers.linear import Linear, PointwiseConv, PointwiseConv1d
from vision_jax.layers.norm import BatchNorm, LayerNorm
from vision_jax.layers.norm_act import EvoNorm, FilterResponseNorm
from vision_jax.layers.position_map import PositionMap
from vision_jax.layers.response_norm import GlobalResponseNorm
from vision_jax.layers.rms_norm import RMSNorm
from vision_jax.layers.scale import ChannelLayerScale, MapLayerScale
from vision_jax.layers.window import HeadsInnermostWindowAttention


def _same(array, module):
    return array


class Rule(NamedTuple):
    """One leaf of a layer in the reference.

    Attributes:
      leaf: its name there.
      to_reference, to_ours: (array, module) -> array, each the inverse of the other; `module` is the layer, whose own
        leaves tell the numbers of heads and the like by their trailing axes (several blocks may be stacked in it).
      parts: number of tensors that the reference may keep it as; the array there then has them along its leading axis.
        A reference with a single name has them joined, one after the other, along the axis that follows.
      beside: leaves that only the reference has -> the value they are written with; ignored when read.
    """

    leaf: str
    to_reference: Callable = _same
    to_ours: Callable = _same
    parts: int = 1
    beside: tuple = ()


def _heads(module):
    """(heads, head_dim) of a QKV layer."""
    return module.kernel.shape[-2:]


def _projections(parts):
    """Ours [C, parts, heads, head_dim], there [parts, heads * head_dim, C]."""
    return {
        "kernel": Rule(
            "weight",
            lambda a, _: a.transpose(1, 2, 3, 0).reshape(parts, -1, a.shape[0]),
            lambda a, m: a.reshape(parts, *_heads(m), -1).transpose(3, 0, 1, 2),
            parts=parts,
        ),
        "bias": Rule("bias", lambda a, _: a.reshape(parts, -1), lambda a, m: a.reshape(parts, *_heads(m)), parts=parts),
    }


def _heads_first(*map_axes):
    """Ours [C, 3, heads, head_dim], there [heads * 3 * head_dim, C, *map_axes]."""
    return {
        "kernel": Rule(
            "weight",
            lambda a, _: a.transpose(2, 1, 3, 0).reshape(-1, a.shape[0], *map_axes),
            lambda a, m: a.reshape(_heads(m)[0], 3, -1, a.shape[1]).transpose(3, 1, 0, 2),
        ),
        "bias": Rule(
            "bias",
            lambda a, _: a.swapaxes(0, 1).reshape(-1),
            lambda a, m: a.reshape(_heads(m)[0], 3, -1).swapaxes(0, 1),
        ),
    }


TORCH = {
    Linear: {"kernel": Rule("weight", lambda a, _: a.T, lambda a, _: a.T)},
    PointwiseConv: {"kernel": Rule("weight", lambda a, _: a.T[:, :, None, None], lambda a, _: a[:, :, 0, 0].T)},
    PointwiseConv1d: {"kernel": Rule("weight", lambda a, _: a.T[:, :, None], lambda a, _: a[:, :, 0].T)},
    Conv: {"kernel": Rule("weight", lambda a, _: a.transpose(3, 2, 0, 1), lambda a, _: a.transpose(2, 3, 1, 0))},
    CondConv: {
        # ours [experts, kh, kw, din, dout], there [experts, dout * din * kh * kw]
        "kernel": Rule(
            "weight",
            lambda a, _: a.transpose(0, 4, 3, 1, 2).reshape(len(a), -1),
            lambda a, m: a.reshape(-1, *np.take(m.kernel.shape, (-1, -2, -4, -3))).transpose(0, 3, 4, 2, 1),
        ),
    },
    LayerNorm: {"scale": Rule("weight")},
    RMSNorm: {"scale": Rule("weight")},
    GroupNorm: {"scale": Rule("weight")},
    GlobalResponseNorm: {"scale": Rule("weight")},
    EvoNorm: {"scale": Rule("weight")},
    FilterResponseNorm: {"scale": Rule("weight")},
    BatchChannelNorm: {
        "scale": Rule("weight", lambda a, _: a[None, :, None], lambda a, _: a.reshape(-1)),
        "bias": Rule("bias", lambda a, _: a[None, :, None], lambda a, _: a.reshape(-1)),
    },
    BatchNorm: {
        "scale": Rule("weight"),
        "mean": Rule("running_mean"),
        "var": Rule("running_var", beside=(("num_batches_tracked", np.zeros((), np.int64)),)),
    },
    QKV: _projections(3),
    KV: _projections(2),
    Affine: {
        name: Rule(name, lambda a, _: a[None, None], lambda a, _: a.reshape(-1)) for name in ("alpha", "beta")
    },
    FreeKeysQKV: {"bias": _projections(2)["bias"]},
    Values: {
        # ours [C, 1, heads, head_dim], there [heads * head_dim, C]
        "kernel": Rule(
            "weight",
            lambda a, _: a.reshape(len(a), -1).T,
            lambda a, m: a.T.reshape(a.shape[1], 1, *_heads(m)),
        ),
        "bias": Rule("bias", lambda a, _: a.reshape(-1), lambda a, m: a.reshape(1, *_heads(m))),
    },
    ChannelLayerScale: {"gamma": Rule("gamma", lambda a, _: a[:, None, None], lambda a, _: a.reshape(-1))},
    MapLayerScale: {"gamma": Rule("gamma", lambda a, _: a[None, :, None, None], lambda a, _: a.reshape(-1))},
    # convolutions over the channels, and over the map alone, of three axes
    EfficientChannelAttention: {"conv": Rule("conv.weight", lambda a, _: a[None, None], lambda a, _: a[0, 0])},
    LocalLambdas: {
        "kernel": Rule(
            "weight",
            lambda a, _: a.transpose(3, 2, 0, 1)[..., None],
            lambda a, _: a[..., 0].transpose(2, 3, 1, 0),
        )
    },
    ConvQKV: {
        # ours [C, parts, heads, head_dim], there [parts * heads * head_dim, C, 1, 1]
        "kernel": Rule(
            "weight",
            lambda a, _: a.transpose(1, 2, 3, 0).reshape(-1, a.shape[0], 1, 1),
            lambda a, m: a.reshape(m.parts, *_heads(m), -1).transpose(3, 0, 1, 2),
        ),
        "bias": Rule("bias", lambda a, _: a.reshape(-1), lambda a, m: a.reshape(m.parts, *_heads(m))),
    },
    PositionMap: {
        "table": Rule("table", lambda a, _: a.transpose(0, 3, 1, 2), lambda a, _: a.transpose(0, 2, 3, 1)),
    },
    GLU: {
        # ours [C, 2, hidden], there [2, hidden, C]
        "kernel": Rule("weight", lambda a, _: a.transpose(1, 2, 0), lambda a, _: a.transpose(2, 0, 1), parts=2),
        "bias": Rule("bias", parts=2),
    },
    WideQKV: {
        # ours [C, heads, width], there [heads * width, C]
        "kernel": Rule(
            "weight",
            lambda a, _: a.reshape(len(a), -1).T,
            lambda a, m: a.T.reshape(-1, *m.kernel.shape[-2:]),
        ),
        "bias": Rule("bias", lambda a, _: a.reshape(-1), lambda a, m: a.reshape(m.bias.shape[-2:])),
    },
    HeadsInnermostWindowAttention: {
        # ours [heads * head_dim, C], there [C, head_dim * heads]
        "proj.kernel": Rule(
            "weight",
            lambda a, m: a.reshape(*_heads(m.qkv), -1).transpose(2, 1, 0).reshape(a.shape[1], -1),
            lambda a, m: a.reshape(len(a), *_heads(m.qkv)[::-1]).transpose(2, 1, 0).reshape(-1, len(a)),
        ),
    },
    HeadsFirstQKV: _heads_first(),
    HeadsFirstConvQKV: _heads_first(1, 1),
}  # fmt: skip

# torch's, where a class token and positions lack the axes of one: transformers' CLIP
FLAT = {
    **TORCH,
    nnx.Module: {
        "cls_token": Rule("cls_token", lambda a, _: a.reshape(-1), lambda a, _: a[None, None]),
        "pos_embed": Rule("pos_embed", lambda a, _: a[0], lambda a, _: a[None]),
    },
}

LINEN = {
    QKV: {
        "kernel": Rule("kernel", lambda a, _: a.swapaxes(0, 1), lambda a, _: a.swapaxes(0, 1), parts=3),
        "bias": Rule("bias", parts=3),
    },
    KV: {
        "kernel": Rule("kernel", lambda a, _: a.swapaxes(0, 1), lambda a, _: a.swapaxes(0, 1), parts=2),
        "bias": Rule("bias", parts=2),
    },
    AttentionPoolLatent: {
        # heads apart: the query's [C, heads, head_dim], the projection's [heads, head_dim, C]
        "q.kernel": Rule("kernel", lambda a, m: a.reshape(-1, *_heads(m.kv)), lambda a, _: a.reshape(len(a), -1)),
        "q.bias": Rule("bias", lambda a, m: a.reshape(_heads(m.kv)), lambda a, _: a.reshape(-1)),
        "proj.kernel": Rule(
            "kernel", lambda a, m: a.reshape(*_heads(m.kv), -1), lambda a, _: a.reshape(-1, a.shape[-1])
        ),
    },
    Attention: {
        # the projection of the heads' results keeps the heads apart: [heads, head_dim, C]
        "proj.kernel": Rule(
            "kernel",
            lambda a, m: a.reshape(*_heads(m.qkv), -1),
            lambda a, _: a.reshape(-1, a.shape[-1]),
        ),
    },
}  # fmt: skip


def find_rule(layout, chain, keys):
    """The rule of a leaf and the layer that it is for.

    Args:
      layout: a table as `TORCH`.
      chain: the modules on the way to the leaf, from the model down to the one that holds it.
      keys: the leaf's path, a key for each step of the chain.

    Returns:
      (rule, module).
    """
    for i, module in enumerate(chain):
        leaf = ".".join(map(str, keys[i:]))
        for kind in type(module).__mro__:
            if leaf in layout.get(kind, {}):
                return layout[kind][leaf], module
    return Rule(str(keys[-1])), chain[-1]
