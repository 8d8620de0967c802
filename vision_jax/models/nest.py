"""NesT: Nested Hierarchical Transformer (Zhang et al., 2021, arXiv:2105.12723).

A plain transformer inside each of the image's blocks, none of which sees another; then a convolution and a maximum
aggregate the map, and four blocks become one, until one is left: blocks keep their number of tokens. Official
repository: google-research/nested-transformer; compared here with timm's, whose `_jx` variants pad as TensorFlow does,
for the official weights.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.pooling import max_pool
from vision_jax.layers.resample import resample_map
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import HeadsInnermostWindowAttention
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages
from vision_jax.parameters import param, trunc_normal, zeros
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class NesTConfig(ModelConfig):
    """A NesT: a number a level of the hierarchy for depths, channels and heads.

    `same_padding`: the maximum that halves a map looks further below and to the right, as TensorFlow pads.
    """

    patch_size: int = 4
    depths: tuple = (2, 2, 8)
    embed_dims: tuple = (96, 192, 384)
    num_heads: tuple = (3, 6, 12)
    mlp_ratio: float = 4.0
    same_padding: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads")
        unit = self.patch_size * self.num_blocks
        whole = all(side % unit == 0 for side in pair(self.img_size))
        check(whole, f"img_size={self.img_size} must be a multiple of {unit}, for blocks of whole patches")

    @property
    def num_blocks(self):
        """Along each axis of the first level's map."""
        return 2 ** (len(self.depths) - 1)

    @property
    def block_size(self):
        """(height, width) of a block, in tokens, at every level."""
        return tuple(side // self.patch_size // self.num_blocks for side in pair(self.img_size))


class Aggregation(nnx.Module):
    """The way up the hierarchy: a 3x3 convolution, a norm, a maximum, [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, norm, padding, dtype):
        self.conv, self.norm, self.padding = Conv(din, dout, 3, dtype=dtype), norm(dout), padding

    def __call__(self, x):
        return max_pool(self.norm(self.conv(x)), 3, stride=2, padding=self.padding)


class Level(nnx.Module):
    """Perhaps the way up, then positions and layers within blocks: [B, H, W, din] -> [B, H', W', dout].

    Args:
      pool: an `Aggregation`, or None.
      dim: channels out.
      rows: blocks along each axis of the map.
      size: (height, width) of a block.
      blocks: a `Stack` of layers.
    """

    def __init__(self, pool, dim, rows, size, blocks):
        self.rows, self.size, self.pool, self.blocks = rows, size, pool, blocks
        self.pos_embed = param((1, rows * rows, size[0] * size[1], dim), trunc_normal)

    def __call__(self, x, train=None):
        x = self.pool(x) if self.pool else x
        positions = as_map(self.pos_embed[...].astype(x.dtype), self.rows, self.size)
        return self.blocks(x + positions, train)

    def resample(self, leaf, array):
        """Positions made for another image size, at this one's; those of no square map as they are."""
        side = round(array.shape[2] ** 0.5) if leaf == "pos_embed" and array.ndim == 4 else 0
        if not side or side * side != array.shape[2] or array.shape[1] != self.rows**2:
            return array
        grid = tuple(self.rows * n for n in self.size)
        table = resample_map(as_map(array, self.rows, (side, side)), grid)
        h, w = self.size
        table = table.reshape(1, self.rows, h, self.rows, w, -1).swapaxes(2, 3)
        return table.reshape(1, self.rows**2, h * w, -1)


def as_map(positions, rows, size):
    """Positions block by block, [1, rows * rows, h * w, C] -> [1, rows * h, rows * w, C]."""
    (h, w), dim = size, positions.shape[-1]
    return positions.reshape(1, rows, rows, h, w, dim).swapaxes(2, 3).reshape(1, rows * h, rows * w, dim)


class NesT(Model):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]."""

    classifier = ("head",)
    inert = (r"attn\.qkv\.bias\[1\]$",)  # what is added to every key adds one number to all scores of a query
    torch_names: ClassVar = {
        "timm": ((r"^levels\.(\d+)\.blocks\.", r"levels.\1.transformer_encoder."),),
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        self.patch_embed = PatchEmbed(
            c.in_chans, c.embed_dims[0], c.patch_size, init=trunc_normal, bias_init=zeros, **kw
        )
        levels, size, padding = [], c.block_size, "same" if c.same_padding else 1
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):

            def block(index, dim=c.embed_dims[i], heads=c.num_heads[i]):
                attn = HeadsInnermostWindowAttention(dim, heads, size, relative_bias=False, **kw)
                return Block(dim, attn=attn, mlp=Mlp(dim, int(dim * c.mlp_ratio), **kw), norm=norm, **kw)

            pool = Aggregation(*c.embed_dims[i - 1 : i + 1], norm=norm, padding=padding, **kw) if i else None
            blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)
            levels.append(Level(pool, c.embed_dims[i], c.num_blocks // 2**i, size, blocks))
        self.levels, dim = nnx.List(levels), c.embed_dims[-1]
        self.norm = norm(dim)
        self.head = Linear(dim, c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(
            FeatureInfo(f"levels.{i}", dim, c.patch_size * 2**i) for i, dim in enumerate(c.embed_dims)
        )

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/16, W/16, C], normalised.

        pyramid=True gives the maps after the levels in `out_indices` instead, not normalised.
        """
        self.check_size(images)
        x, maps = self.patch_embed(images), []
        for level in self.levels:
            x = level(x, train)
            maps.append(x)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else self.norm(x)

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean((1, 2)), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each layer, with the way up to it, the head."""
        groups, block = [(r"^patch_embed\.", 0)], 1
        for i, depth in enumerate(self.config.depths):
            groups.append((rf"^levels\.{i}\.(pool|pos_embed)", block))
            groups += [(rf"^levels\.{i}\.blocks\.{j}\.", block + j) for j in range(depth)]
            block += depth
        return (*groups, (r"", block))


def _nest(size, params, gmacs, **fields):
    """Registers a model, and that of the official weights."""
    for suffix, tag, same in (("", "", False), ("_jx", "goog_in1k", True)):
        register(
            f"nest_{size}{suffix}", NesT, NesTConfig(same_padding=same, **fields), params=params, gmacs=gmacs,
            paper="2105.12723", licence="apache-2.0", tags=(tag,),
        )  # fmt: skip


_nest("tiny", 17_057_608, 5.8)
_nest("small", 38_351_176, 10.4, depths=(2, 2, 20))
_nest("base", 67_723_368, 17.9, depths=(2, 2, 20), embed_dims=(128, 256, 512), num_heads=(4, 8, 16))
