"""CvT: Introducing Convolutions to Vision Transformers (Wu et al., 2021, arXiv:2103.15808).

Three stages of transformer blocks on ever smaller maps. Overlapping strided convolutions make the tokens of each stage;
depthwise convolutions, strided for keys and values, precede the projections of attention, so that no position embedding
is needed and any image size fits. A class token joins in the last stage. Official repository: microsoft/CvT; compared
here with transformers' port, given the official activation.

Both scale queries by the width of the stage, not of a head. Where they differ: the official MLP has QuickGELU, and so
had the published weights' training, so it is the default; the port has GELU, which `act="gelu"` gives. Drop path grows
linearly over the blocks of the last stage, as in the official code; the port gives all of them the rate of the third.
Convolutions start as in the port, from a truncated normal.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import QKV, aggregate, attention_probabilities
from vision_jax.layers.block import Block
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu, quick_gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig
from vision_jax.parameters import param, trunc_normal, zeros
from vision_jax.registry import check, register

_ACTS = {"gelu": gelu, "quick_gelu": quick_gelu}


@dataclasses.dataclass(frozen=True)
class CvTConfig(ModelConfig):
    """A CvT; a number a stage for `depths`, `embed_dims` and `num_heads`.

    `act`: "gelu" or "quick_gelu". `drop_path_rate`: of the last block; the rates grow from 0 over the last stage, the
    others have none.
    """

    depths: tuple = (1, 2, 10)
    embed_dims: tuple = (64, 192, 384)
    num_heads: tuple = (1, 3, 6)
    mlp_ratio: float = 4.0
    act: str = "quick_gelu"
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        for field in ("depths", "embed_dims", "num_heads"):
            check(
                len(getattr(self, field)) == 3, f"{field}={getattr(self, field)}: one number for each of three stages"
            )
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=True):
            check(dim % heads == 0, f"embed_dims={self.embed_dims} must be multiples of num_heads={self.num_heads}")
        check(self.act in _ACTS, f"act={self.act!r}: one of {', '.join(map(repr, _ACTS))}")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid:
    """Height and width of the map that tokens were; static wherever it is passed."""

    height: int
    width: int


class ConvAttention(nnx.Module):
    """Self-attention behind convolutional projections, tokens [B, (1 +) N, C] -> [B, (1 +) N, C] (equation 2).

    A class token in front of the map's tokens passes the convolutions by.

    Args:
      dim, num_heads: channels and heads.
      attn_drop, proj_drop, dtype: as in `layers.attention.Attention`.
    """

    def __init__(self, dim, num_heads, *, attn_drop, proj_drop, dtype):
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = (
            ConvNorm(dim, dim, 3, stride=stride, groups=dim, init=trunc_normal, dtype=dtype) for stride in (1, 2, 2)
        )
        self.qkv = QKV(dim, num_heads, dim // num_heads, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train, grid):
        B, N, C = x.shape
        token, pixels = jnp.split(x, [N - grid.height * grid.width], axis=1)
        pixels = pixels.reshape(B, grid.height, grid.width, C)
        convs = (self.conv_proj_q, self.conv_proj_k, self.conv_proj_v)
        inputs = [jnp.concatenate([token, conv(pixels, train).reshape(B, -1, C)], axis=1) for conv in convs]
        q, k, v = self.qkv(*inputs)
        probabilities = tap(self, "probabilities", attention_probabilities(q, k, C**-0.5))
        out = aggregate(dropout(probabilities, self.attn_drop, train), v)
        return dropout(self.proj(out.reshape(B, N, C)), self.proj_drop, train)


class Stage(nnx.Module):
    """Tokens from overlapping patches, then blocks: [B, H, W, Cin] -> tokens [B, (1 +) N, C] and their `Grid`."""

    def __init__(self, c, i, rates):
        dim, last = c.embed_dims[i], i == len(c.depths) - 1
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        din, patch_size, stride, padding = (c.embed_dims[i - 1], 3, 2, 1) if i else (c.in_chans, 7, 4, 2)
        self.drop = c.proj_drop_rate
        self.patch_embed = PatchEmbed(
            din, dim, patch_size, stride=stride, padding=padding, norm=norm, init=trunc_normal, bias_init=zeros, **kw
        )
        self.cls_token = param((1, 1, dim), trunc_normal) if last else None

        def block(index):
            attn = ConvAttention(dim, c.num_heads[i], attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate, **kw)
            mlp = Mlp(dim, int(dim * c.mlp_ratio), act=_ACTS[c.act], drop=c.proj_drop_rate, **kw)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, **kw)

        self.blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)

    def __call__(self, x, train=None):
        x = dropout(self.patch_embed(x), self.drop, train)
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C)
        if self.cls_token is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, C)), x], axis=1)
        return self.blocks(x, train, Grid(H, W)), Grid(H, W)


_HF = (
    (r"^stages\.", "cvt.encoder.stages."),
    (r"patch_embed\.proj\.", "embedding.convolution_embeddings.projection."),
    (r"patch_embed\.norm\.", "embedding.convolution_embeddings.normalization."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"attn\.conv_proj_(.)\.", r"attention.attention.convolution_projection_\1.convolution_projection."),
    (r"attn\.qkv\.", tuple(f"attention.attention.projection_{part}." for part in ("query", "key", "value"))),
    (r"projection_q\.", "projection_query."),
    (r"projection_k\.", "projection_key."),
    (r"projection_v\.", "projection_value."),
    (r"convolution_projection\.conv\.", "convolution_projection.convolution."),
    (r"convolution_projection\.bn\.", "convolution_projection.normalization."),
    (r"attn\.proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
)
_OFFICIAL = (
    (r"^stages\.(\d)\.", r"stage\1."),
    (r"attn\.qkv\.", tuple(f"attn.proj_{part}." for part in ("q", "k", "v"))),
)


class ConvolutionalVisionTransformer(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    # what is added to every key adds one number to all scores of a query; in the last stage the class token's key has
    # no convolution
    inert = (r"attn\.qkv\.bias\[1\]$", r"^stages\.[01]\..*\.attn\.conv_proj_k\.bn\.(bias|mean)$")
    torch_names: ClassVar = {"hf": _HF, "official": _OFFICIAL}

    def __init__(self, config):
        c = self.config = config
        rates = [(0.0,) * depth for depth in c.depths[:-1]] + [*linear_rates(c.drop_path_rate, c.depths[-1:])]
        self.stages = nnx.List([Stage(c, i, rates[i]) for i in range(len(c.depths))])
        self.norm = LayerNorm(c.embed_dims[-1], epsilon=1e-5, dtype=c.dtype)
        self.head = Linear(c.embed_dims[-1], c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C], the class token first, normalised.

        pyramid=True gives the maps [B, H/r, W/r, C] after the stages in `out_indices` instead, not normalised.
        """
        x, maps = images, []
        for stage in self.stages:
            tokens, grid = stage(x, train)
            x = tokens[:, -grid.height * grid.width :].reshape(-1, grid.height, grid.width, tokens.shape[-1])
            maps.append(x)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else self.norm(tokens)

    def forward_head(self, x, train=None):
        """Tokens [B, 1 + N, C] -> logits [B, num_classes], or the class token [B, C] without a head."""
        x = dropout(x[:, 0], self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: each stage's embedding, then each of its blocks; the head."""
        groups = []
        for i, depth in enumerate(self.config.depths):
            groups.append((rf"^stages\.{i}\.(patch_embed|cls_token)", len(groups)))
            groups += [(rf"^stages\.{i}\.blocks\.{j}\.", len(groups) + j) for j in range(depth)]
        return (*groups, (r"", len(groups)))


def _cvt(name, params, gmacs, hubs, **fields):
    """Registers a variant. `hubs`: {tag: repository}; those at 384 pixels were evaluated on the whole image."""
    sizes = {tag: dict(img_size=384, crop_pct=1.0) if "384" in hub else dict(img_size=224) for tag, hub in hubs.items()}
    register(
        name, ConvolutionalVisionTransformer, CvTConfig(**fields), params=params, gmacs=gmacs, paper="2103.15808",
        reference="transformers", licence="apache-2.0",
        tags={tag: dict(hub=f"microsoft/{hub}", **sizes[tag]) for tag, hub in hubs.items()},
    )  # fmt: skip


_cvt("cvt_13", 19_997_480, 4.5, {"in1k": "cvt-13", "in1k_384": "cvt-13-384", "in22k_ft_in1k_384": "cvt-13-384-22k"})
_cvt(
    "cvt_21", 31_622_696, 7.1, {"in1k": "cvt-21", "in1k_384": "cvt-21-384", "in22k_ft_in1k_384": "cvt-21-384-22k"},
    depths=(1, 4, 16),
)  # fmt: skip
_cvt(
    "cvt_w24", 277_196_392, 193.2, {"in22k_ft_in1k_384": "cvt-w24-384-22k"},
    img_size=384, depths=(2, 2, 20), embed_dims=(192, 768, 1024), num_heads=(3, 12, 16),
)  # fmt: skip
