"""Twins: Revisiting the Design of Spatial Attention in Vision Transformers (Chu et al., 2021, arXiv:2104.13840).

Two pyramids. Twins-SVT takes turns between attention inside windows and attention to a map that a strided convolution
shrinks, so that windows exchange what they saw. Twins-PCPVT is PVT, which has the second alone, without its learned
positions. In both a depthwise convolution after the first block of each stage tells positions (CPVT: Chu et al., 2021,
arXiv:2102.10882), so that any image size fits. Official repository: Meituan-AutoML/Twins; compared here with timm's,
which is that code: windows at the edge are padded with zeros, and the zeros take part.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.block import Block
from vision_jax.layers.conditional_position import ConditionalPosition
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.reduced_attention import ReducedAttention
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import WindowAttention
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages, stage_groups
from vision_jax.parameters import kaiming_normal, zeros
from vision_jax.registry import register


@dataclasses.dataclass(frozen=True)
class TwinsConfig(ModelConfig):
    """A Twins; a number a stage for `depths`, `embed_dims`, `num_heads`, `sr_ratios` and `mlp_ratios`.

    `window_size`: None for Twins-PCPVT, else every first, third, ... block attends in such windows. `drop_rate` and
    `pos_drop_rate` drop before the classifier and after the patches.
    """

    depths: tuple = (3, 4, 6, 3)
    embed_dims: tuple = (64, 128, 320, 512)
    num_heads: tuple = (1, 2, 5, 8)
    sr_ratios: tuple = (8, 4, 2, 1)
    mlp_ratios: tuple = (8, 8, 4, 4)
    window_size: int | tuple | None = None
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads", "sr_ratios", "mlp_ratios")


class FirstBlock(Block):
    """A block that ends with the stage's positions, [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, *, dtype, **parts):
        super().__init__(dim, dtype=dtype, **parts)
        self.pos = ConditionalPosition(dim, init=kaiming_normal, dtype=dtype)

    def __call__(self, x, train=None):
        return self.pos(super().__call__(x, train))


class Stage(nnx.Module):
    """Patches, then blocks, the first of which is unlike the others: [B, H, W, Cin] -> [B, H/2, W/2, C]."""

    def __init__(self, c, i, rates):
        dim, heads, kw = c.embed_dims[i], c.num_heads[i], dict(dtype=c.dtype)
        din, patch_size = (c.embed_dims[i - 1], 2) if i else (c.in_chans, 4)
        self.drop = c.pos_drop_rate
        self.patch_embed = PatchEmbed(
            din, dim, patch_size, norm=functools.partial(LayerNorm, epsilon=1e-5, **kw), init=kaiming_normal,
            bias_init=zeros, **kw,
        )  # fmt: skip

        def block(index):
            if c.window_size and index % 2 == 0:
                window = pair(c.window_size)
                attn = WindowAttention(dim, heads, window, relative_bias=False, proj_drop=c.proj_drop_rate, **kw)
            else:
                reduced = dict(reduction=c.sr_ratios[i], init=kaiming_normal)
                attn = ReducedAttention(dim, heads, proj_drop=c.proj_drop_rate, **reduced, **kw)
            mlp = Mlp(dim, int(dim * c.mlp_ratios[i]), drop=c.proj_drop_rate, **kw)
            norm = functools.partial(LayerNorm, epsilon=1e-6, **kw)
            return (Block if index else FirstBlock)(dim, attn=attn, mlp=mlp, norm=norm, **kw)

        self.blocks = Stack(block, rates, remat=c.remat)

    def __call__(self, x, train=None):
        return self.blocks(dropout(self.patch_embed(x), self.drop, train), train)


class Twins(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head",)
    inert = (r"attn\.qkv\.bias\[1\]$", r"attn\.kv\.bias\[0\]$")  # one number is added to all scores of a query
    torch_names: ClassVar = {
        "timm": (
            (r"^stages\.(\d+)\.patch_embed\.", r"patch_embeds.\1."),
            (r"^stages\.(\d+)\.blocks\.0\.pos\.proj\.", r"pos_block.\1.proj.0."),
            (r"^stages\.(\d+)\.blocks\.", r"blocks.\1."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        rates = linear_rates(c.drop_path_rate, c.depths)
        self.stages = nnx.List([Stage(c, i, rates[i]) for i in range(len(c.depths))])
        self.norm = LayerNorm(c.embed_dims[-1], epsilon=1e-6, dtype=c.dtype)
        self.head = Linear(c.embed_dims[-1], c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C], normalised.

        pyramid=True gives the maps after the stages in `out_indices` instead, not normalised.
        """
        maps = self.run_stages(images, train)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else self.norm(maps[-1])

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^stages\.0\.patch_embed\.")


def _twins(name, depths, params, gmacs, **fields):
    register(
        f"twins_{name}", Twins, TwinsConfig(depths=depths, **fields), params=params, gmacs=gmacs, paper="2104.13840",
        licence="apache-2.0", tags=("in1k",), crop_pct=0.9,
    )  # fmt: skip


def _svt(size, dim, heads, depths, params, gmacs):
    dims, heads = (tuple(n * 2**i for i in range(4)) for n in (dim, heads))
    shared = dict(mlp_ratios=(4,) * 4, window_size=7)
    _twins(f"svt_{size}", depths, params, gmacs, embed_dims=dims, num_heads=heads, **shared)


_twins("pcpvt_small", (3, 4, 6, 3), 24_106_216, 3.7)
_twins("pcpvt_base", (3, 4, 18, 3), 43_828_456, 6.4)
_twins("pcpvt_large", (3, 8, 27, 3), 60_989_672, 9.5)
_svt("small", 64, 2, (2, 2, 10, 4), 24_060_776, 2.8)
_svt("base", 96, 3, (2, 2, 18, 2), 56_070_952, 8.3)
_svt("large", 128, 4, (2, 2, 18, 2), 99_271_400, 14.8)
