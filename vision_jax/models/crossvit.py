"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification (Chen et al., 2021).

arXiv:2103.14899. Two transformers see the image in small and in large patches. After a few blocks each, a branch's
class token goes over to the other, attends to the patches there and comes back: cost linear in their number.

Official repository: IBM/CrossViT; compared here with timm's. As released, the branch of large patches sees the image
resized to 14/15, so that 16 divides it where 12 divides the image; "dagger" models embed patches by three convolutions.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.attention import Attention
from vision_jax.layers.block import Block
from vision_jax.layers.class_attention import ClassAttention, ClassBlock
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.interpolate import bicubic
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, patch_grid
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class CrossViTConfig(ModelConfig):
    """A CrossViT: pairs are of the branches, small patches first.

    `num_encoders` is the paper's K, `depths` its N and M. A branch sees the image at `img_scale`, rounded to a multiple
    of its patches.
    """

    img_size: int | tuple = 240
    img_scale: tuple = (1.0, 224 / 240)
    patch_size: tuple = (12, 16)
    embed_dim: tuple = (192, 384)
    num_encoders: int = 3
    depths: tuple = (1, 4)
    num_heads: tuple = (6, 6)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    conv_stem: bool = False
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        for field in ("img_scale", "patch_size", "embed_dim", "depths", "num_heads"):
            check(len(getattr(self, field)) == 2, f"{field}={getattr(self, field)} must have two, one a branch")
        for dim, heads in zip(self.embed_dim, self.num_heads, strict=True):
            check(dim % heads == 0, f"embed_dim={self.embed_dim} must be multiples of num_heads={self.num_heads}")
        for scale, patch in zip(self.img_scale, self.patch_size, strict=True):
            if scale == 1:
                patch_grid(self.img_size, patch)
            check(
                not self.conv_stem or patch in (12, 16),
                f"patch_size={self.patch_size}: conv_stem=True is for patches of 12 and 16 pixels",
            )


def branch_size(config, branch):
    """(height, width) at which a branch sees the image, in pixels."""
    scale, patch = config.img_scale[branch], config.patch_size[branch]
    return tuple(max(round(side * scale / patch), 1) * patch for side in pair(config.img_size))


class ConvPatchEmbed(nnx.Module):
    """Patches by three convolutions, [B, H, W, C] -> [B, H/p, W/p, dim] for p of 12 or 16 (section 4.1)."""

    def __init__(self, channels, dim, patch_size, *, dtype):
        conv = functools.partial(Conv, init=torch_default, bias_init=torch_default, dtype=dtype)
        middle, last = (dict(stride=3, padding=0), {}) if patch_size == 12 else (dict(stride=2), dict(stride=2))
        self.proj = nnx.List(
            [
                conv(channels, dim // 4, 7, stride=4),
                conv(dim // 4, dim // 2, 3, **middle),
                conv(dim // 2, dim, 3, **last),
            ]
        )

    def __call__(self, x):
        first, middle, last = self.proj
        return last(jax.nn.relu(middle(jax.nn.relu(first(x)))))


class Projection(nnx.Module):
    """A class token to the other branch's channels, [B, 1, din] -> [B, 1, dout] (section 3.3: f and g)."""

    def __init__(self, din, dout, *, norm, dtype):
        self.norm, self.linear = norm(din), Linear(din, dout, dtype=dtype)

    def __call__(self, x):
        return self.linear(gelu(self.norm(x)))


class Encoder(nnx.Module):
    """A multi-scale encoder: both branches' tokens [B, 1+N, C] -> the same (figure 2).

    Args:
      config: a `CrossViTConfig`.
      rates: the drop-path rates of its blocks; a short branch has the first of them, the fusion the last.
    """

    def __init__(self, config, rates):
        c = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        options = dict(qkv_bias=c.qkv_bias, attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate, **kw)

        def branch(dim, heads, depth):
            def block(index):
                mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, **kw)
                return Block(dim, attn=Attention(dim, heads, **options), mlp=mlp, norm=norm, **kw)

            return Stack(block, rates[:depth], scan=c.scan_blocks, remat=c.remat)

        def fusion(dim, heads):
            attn = ClassAttention(dim, heads, **options)
            return Stack(lambda index: ClassBlock(dim, attn=attn, norm=norm, **kw), rates[-1:], remat=c.remat)

        dims, heads, ways = c.embed_dim, c.num_heads, ((0, 1), (1, 0))
        self.blocks = nnx.List([branch(*of) for of in zip(dims, heads, c.depths, strict=True)])
        self.projs = nnx.List([Projection(dims[own], dims[other], norm=norm, **kw) for own, other in ways])
        self.fusion = nnx.List([fusion(dims[other], heads[other]) for _, other in ways])
        self.revert_projs = nnx.List([Projection(dims[other], dims[own], norm=norm, **kw) for own, other in ways])

    def __call__(self, xs, train=None):
        xs = [blocks(x, train) for blocks, x in zip(self.blocks, xs, strict=True)]
        out = []
        for own, other in ((0, 1), (1, 0)):
            token = self.projs[own](xs[own][:, :1])
            token = self.revert_projs[own](self.fusion[own](token, train, xs[other][:, 1:]))
            out.append(jnp.concatenate([token, xs[own][:, 1:]], axis=1))
        return out


class CrossViT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes], the mean of both branches'."""

    classifier = ("head",)
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$",)
    torch_names: ClassVar = {
        "timm": (
            (r"(projs\.\d\.)norm\.", r"\g<1>0."),
            (r"(projs\.\d\.)linear\.", r"\g<1>2."),
            (r"(fusion\.\d\.)0\.", r"\1"),
            (r"(fusion\.\d\.attn\.)qkv\.", (r"\1wq.", r"\1wk.", r"\1wv.")),
            (r"^(patch_embed\.\d\.proj\.)(\d)\.", lambda match: f"{match[1]}{2 * int(match[2])}."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        embed = ConvPatchEmbed if c.conv_stem else PatchEmbed
        self.grids = tuple(tuple(side // c.patch_size[b] for side in branch_size(c, b)) for b in range(2))
        self.patch_embed = nnx.List([embed(c.in_chans, c.embed_dim[b], c.patch_size[b], **kw) for b in range(2)])
        for b, (grid, dim) in enumerate(zip(self.grids, c.embed_dim, strict=True)):
            setattr(self, f"cls_token_{b}", param((1, 1, dim), trunc_normal))
            setattr(self, f"pos_embed_{b}", param((1, 1 + math.prod(grid), dim), trunc_normal))
        rates = linear_rates(c.drop_path_rate, (max(c.depths),) * c.num_encoders)
        self.blocks = nnx.List([Encoder(c, r) for r in rates])
        self.norm = nnx.List([norm(dim) for dim in c.embed_dim])
        self.head = nnx.List([Linear(dim, c.num_classes, **kw) for dim in c.embed_dim]) if c.num_classes else None
        self.feature_info = tuple(
            FeatureInfo(f"blocks.{i}", c.embed_dim[b], round(c.patch_size[b] / c.img_scale[b]))
            for b in range(2)
            for i in range(c.num_encoders)
        )

    def embed(self, images, branch, train):
        """Images [B, H, W, C] -> a branch's tokens [B, 1 + N, C] with positions."""
        c, size = self.config, branch_size(self.config, branch)
        x = images if images.shape[1:3] == size else bicubic(images, size)
        x = self.patch_embed[branch](x).reshape(images.shape[0], -1, c.embed_dim[branch])
        token, position = (
            getattr(self, f"{leaf}_{branch}")[...].astype(x.dtype) for leaf in ("cls_token", "pos_embed")
        )
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], axis=1)
        return dropout(x + position, c.pos_drop_rate, train)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> both branches' tokens, a list of two [B, 1 + N, C], normalised.

        pyramid=True gives maps [B, H', W', C] after the encoders instead, not normalised: first those of the small
        patches, then those of the large ones.
        """
        self.check_size(images)
        xs, maps = [self.embed(images, b, train) for b in range(2)], ([], [])
        for encoder in self.blocks:
            xs = encoder(xs, train)
            for found, x, grid in zip(maps, xs, self.grids, strict=True):
                found.append(x[:, 1:].reshape(x.shape[0], *grid, -1))
        if pyramid:
            maps = [*maps[0], *maps[1]]
            return [maps[i] for i in self.indices(out_indices)]
        return [norm(x) for norm, x in zip(self.norm, xs, strict=True)]

    def forward_head(self, xs, train=None):
        """Both branches' tokens -> logits [B, num_classes], or both class tokens [B, C + C'] without a head."""
        xs = [dropout(x[:, 0], self.config.drop_rate, train) for x in xs]
        if self.head is None:
            return jnp.concatenate(xs, axis=1)
        return (self.head[0](xs[0]) + self.head[1](xs[1])) / 2

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grids[int(leaf[-1])], 1) if leaf.startswith("pos_embed") else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each encoder, the head."""
        encoders = tuple((rf"^blocks\.{i}\.", i + 1) for i in range(len(self.blocks)))
        return ((r"^(patch_embed|cls_token|pos_embed)", 0), *encoders, (r"", len(self.blocks) + 1))


def _crossvit(name, embed_dim, depth, num_heads, params, gmacs, mlp_ratio=3.0, **fields):
    img_size = fields.get("img_size", 240)
    config = CrossViTConfig(
        embed_dim=(embed_dim, 2 * embed_dim), depths=(1, depth), num_heads=(num_heads,) * 2, mlp_ratio=mlp_ratio,
        conv_stem="dagger" in name, **fields,
    )  # fmt: skip
    register(
        name, CrossViT, config, params=params, gmacs=gmacs, paper="2103.14899", licence="apache-2.0", tags=("in1k",),
        crop_pct=1.0 if img_size == 408 else 0.875,
    )  # fmt: skip


_crossvit("crossvit_tiny_240", 96, 4, 3, 7_014_800, 1.57, mlp_ratio=4.0)
_crossvit("crossvit_small_240", 192, 4, 6, 26_856_272, 5.63, mlp_ratio=4.0)
_crossvit("crossvit_base_240", 384, 4, 12, 105_025_232, 21.22, mlp_ratio=4.0)
_crossvit("crossvit_9_240", 128, 3, 4, 8_553_296, 1.85)
_crossvit("crossvit_15_240", 192, 5, 6, 27_528_464, 5.81)
_crossvit("crossvit_18_240", 224, 6, 7, 43_271_408, 9.05)
_crossvit("crossvit_9_dagger_240", 128, 3, 4, 8_776_592, 1.99)
_crossvit("crossvit_15_dagger_240", 192, 5, 6, 28_209_008, 6.13)
_crossvit("crossvit_15_dagger_408", 192, 5, 6, 28_500_080, 21.45, img_size=408, img_scale=(1.0, 384 / 408))
_crossvit("crossvit_18_dagger_240", 224, 6, 7, 44_266_976, 9.50)
_crossvit("crossvit_18_dagger_408", 224, 6, 7, 44_606_560, 32.47, img_size=408, img_scale=(1.0, 384 / 408))
