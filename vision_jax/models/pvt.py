"""PVT: Pyramid Vision Transformer (Wang et al., 2021, arXiv:2102.12122).

A transformer with the pyramid of a convolutional network: four stages, each cutting its map into 2x2 patches (the
image into 4x4), with learned positions of its own. Keys and values come from a map that a strided convolution shrinks
("spatial-reduction attention"), so that attention over large maps is affordable. A class token joins the last stage.

Official repository: whai362/PVT (branch v2 holds both versions); compared here with transformers' modules, set as the
official code sets its own where the port departs from it: the norms of patches and of reduced maps have torch's epsilon
of 1e-5, those of the blocks and the last 1e-6, where the port has 1e-6 in all; convolutions start from torch's default,
not at a deviation of 0.02. A pyramid's maps are those before the final norm, as in the official detectors.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.reduced_attention import ReducedAttention
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages, stage_groups
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class PVTConfig(ModelConfig):
    """A PVT; a number a stage for depths (L), embed_dims (C), num_heads (N), sr_ratios (R) and mlp_ratios (E).

    `drop_rate` drops after the positions, the attention's projection and both maps of the feed-forward network.
    """

    depths: tuple = (2, 2, 2, 2)
    embed_dims: tuple = (64, 128, 320, 512)
    num_heads: tuple = (1, 2, 5, 8)
    sr_ratios: tuple = (8, 4, 2, 1)
    mlp_ratios: tuple = (8, 8, 4, 4)
    qkv_bias: bool = True
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads", "sr_ratios", "mlp_ratios")
        check(self.sr_ratios[-1] == 1, f"sr_ratios={self.sr_ratios}: the last is 1, the class token is on no map")
        least = max(4 * 2**i * ratio for i, ratio in enumerate(self.sr_ratios))
        check(min(pair(self.img_size)) >= least, f"img_size={self.img_size} is below {least}: a reduced map is empty")


_STAGES = range(4)
_HF = (
    *((rf"^stages\.{i}\.(pos_embed|cls_token|patch_embed)", rf"encoder.patch_embeddings.{i}.\1") for i in _STAGES),
    (r"pos_embed$", "position_embeddings"),
    (r"\.patch_embed\.proj\.", ".projection."),
    (r"\.patch_embed\.norm\.", ".layer_norm."),
    (r"^stages\.(\d)\.blocks\.", r"encoder.block.\1."),
    (r"\.norm(\d)\.", r".layer_norm_\1."),
    (r"\.attn\.q\.", ".attention.self.query."),
    (r"\.attn\.kv\.", (".attention.self.key.", ".attention.self.value.")),
    (r"\.attn\.sr\.", ".attention.self.sequence_reduction."),
    (r"\.attn\.norm\.", ".attention.self.layer_norm."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
    (r"^norm\.", "encoder.layer_norm."),
    (r"^encoder\.", "pvt.encoder."),
    (r"^head\.", "classifier."),
)
_OFFICIAL = (
    (r"^stages\.\d\.cls_token$", "cls_token"),
    *((rf"^stages\.{i}\.(pos_embed|patch_embed|block)s?", rf"\g<1>{i + 1}") for i in _STAGES),
)


class Stage(nnx.Module):
    """Patches, positions, blocks: [B, H, W, Cin] -> [B, H/2, W/2, C]; with a class token, tokens [B, 1 + HW/4, C]."""

    def __init__(self, c, i, grid, rates):
        dim, kw, self.grid, self.rate = c.embed_dims[i], dict(dtype=c.dtype), grid, c.drop_rate
        norm = functools.partial(LayerNorm, epsilon=1e-6, **kw)
        last = i == len(c.depths) - 1
        din, patch_size = (c.embed_dims[i - 1], 2) if i else (c.in_chans, 4)
        self.patch_embed = PatchEmbed(din, dim, patch_size, norm=functools.partial(LayerNorm, epsilon=1e-5, **kw), **kw)
        self.cls_token = param((1, 1, dim), trunc_normal) if last else None
        self.pos_embed = param((1, int(last) + math.prod(grid), dim), trunc_normal)

        def block(index):
            attn = ReducedAttention(
                dim, c.num_heads[i], reduction=c.sr_ratios[i], qkv_bias=c.qkv_bias, attn_drop=c.attn_drop_rate,
                proj_drop=c.drop_rate, init=torch_default, bias_init=torch_default, **kw,
            )  # fmt: skip
            mlp = Mlp(dim, int(dim * c.mlp_ratios[i]), drop=c.drop_rate, **kw)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, **kw)

        self.blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)

    def __call__(self, x, train=None):
        x = self.patch_embed(x)
        B, H, W, C = x.shape
        if self.grid != (H, W):
            raise InputError(f"images give {(H, W)} patches, the model has positions for {self.grid}: set img_size")
        position = self.pos_embed[...].astype(x.dtype)
        if self.cls_token is None:
            position = position.reshape(1, H, W, C)
        else:
            token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, C))
            x = jnp.concatenate([token, x.reshape(B, H * W, C)], axis=1)
        return self.blocks(dropout(x + position, self.rate, train), train)

    def resample(self, leaf, array):
        """Positions made for another image size, at this one's; bilinear, as the official code does at every call."""
        if leaf != "pos_embed":
            return array
        return resample_positions(array, self.grid, int(self.cls_token is not None), "bilinear", antialias=False)


class PyramidVisionTransformer(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    inert = (r"attn\.kv\.bias\[0\]$",)  # what is added to every key adds one number to all scores of a query
    torch_names: ClassVar = {"hf": _HF, "official": _OFFICIAL}

    def __init__(self, config):
        c = self.config = config
        grid, stages = tuple(size // 4 for size in pair(c.img_size)), []
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            stages.append(Stage(c, i, grid, rates))
            grid = tuple(n // 2 for n in grid)
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(c.embed_dims[-1], epsilon=1e-6, dtype=c.dtype)
        self.head = Linear(c.embed_dims[-1], c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C] of the last stage, normalised.

        pyramid=True gives the maps after the stages in `out_indices` instead, not normalised, without the class token.
        """
        x, maps = images, []
        for stage in self.stages:
            x = stage(x, train)
            maps.append(x)
        if pyramid:
            maps[-1] = x[:, 1:].reshape(x.shape[0], *stage.grid, -1)
            return [maps[i] for i in self.indices(out_indices)]
        return self.norm(x)

    def forward_head(self, x, train=None):
        """Tokens [B, 1 + N, C] -> logits [B, num_classes], or the class token [B, C] without a head."""
        return self.head(x[:, 0]) if self.head else x[:, 0]

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^stages\.0\.(patch_embed|pos_embed)")


def _pvt(size, depths, params, gmacs):
    register(
        f"pvt_{size}", PyramidVisionTransformer, PVTConfig(depths=depths), params=params, gmacs=gmacs,
        paper="2102.12122", licence="apache-2.0", reference="transformers",
        tags={"in1k": {"hub": f"Xrenya/pvt-{size}-224"}},
    )  # fmt: skip


_pvt("tiny", (2, 2, 2, 2), 13_229_288, 1.9)
_pvt("small", (3, 4, 6, 3), 24_485_864, 3.8)
_pvt("medium", (3, 4, 18, 3), 44_208_104, 6.7)
_pvt("large", (3, 8, 27, 3), 61_369_320, 9.8)
