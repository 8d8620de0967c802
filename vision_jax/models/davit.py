"""DaViT: Dual Attention Vision Transformers (Ding et al., 2022, arXiv:2204.03645).

Two attentions take turns: among the positions of a window, and among the channels of a group, where each channel is a
token that holds the whole map. The first is local and fine, the second global; both are linear in the size of the map.
Positions come from depthwise convolutions before every branch. Official repository: dingmyu/davit; compared here with
timm's, to which its weights were ported.

The paper's channel attention asks with the queries; the released code has the keys ask, the values answer and the
queries be summed, which names the parts of one projection differently. The `_fl` variants are the image towers of
Florence-2 (Xiao et al., 2023, arXiv:2311.06242): the paper's order, scores scaled by the number of positions, and
overlapping patches between the stages.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.block import Block
from vision_jax.layers.channel_attention import ChannelAttention
from vision_jax.layers.conditional_position import ConditionalPosition
from vision_jax.layers.conv import pair
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import WindowAttention
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import torch_default
from vision_jax.registry import check, register

_CONV = dict(init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class DaViTConfig(ModelConfig):
    """A DaViT; a number a stage for `depths` (pairs of blocks), `embed_dims` and `num_heads`, which are groups too.

    `down_kernel_size` is that of the strided convolutions between the stages; `florence`: Florence-2's attention.
    """

    depths: tuple = (1, 1, 9, 1)
    embed_dims: tuple = (96, 192, 384, 768)
    num_heads: tuple = (3, 6, 12, 24)
    window_size: int | tuple = 7
    mlp_ratio: float = 4.0
    down_kernel_size: int = 2
    florence: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads")
        check(self.down_kernel_size in (2, 3), f"down_kernel_size={self.down_kernel_size}: 2 or 3")


class DualBlock(nnx.Module):
    """Attention in windows, then between channels, each with its feed-forward network, [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, dim, heads):
        kw = dict(dtype=c.dtype)
        order = (0, 1, 2) if c.florence else (1, 2, 0)
        self.spatial_block = self._block(
            c, dim, WindowAttention(dim, heads, pair(c.window_size), relative_bias=False, **kw)
        )
        self.channel_block = self._block(
            c, dim, ChannelAttention(dim, heads, order=order, scale_by_tokens=c.florence, **kw)
        )

    def _block(self, c, dim, attn):
        positions = [ConditionalPosition(dim, **_CONV, dtype=c.dtype) for _ in range(2)]
        mlp = Mlp(dim, int(dim * c.mlp_ratio), dtype=c.dtype)
        norm = functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        return Block(dim, attn=attn, mlp=mlp, norm=norm, positions=positions, dtype=c.dtype)

    def __call__(self, x, train=None):
        return self.channel_block(self.spatial_block(x, train), train)


_NUMBERED = ((r"\.spatial_block\.", ".0."), (r"\.channel_block\.", ".1."))
_OFFICIAL = (
    (r"^stages\.(\d+)\.downsample\.conv\.", r"patch_embeds.\1.proj."),
    (r"^stages\.(\d+)\.downsample\.", r"patch_embeds.\1."),
    (r"^stem\.conv\.", "patch_embeds.0.proj."),
    (r"^stem\.", "patch_embeds.0."),
    (r"^stages\.(\d+)\.blocks\.", r"main_blocks.\1."),
    *_NUMBERED,
    (r"\.cpe([12])\.", lambda match: f".cpe.{int(match[1]) - 1}."),
    (r"^head\.norm\.", "norms."),
    (r"^head\.fc\.", "head."),
)


class DaViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)
    inert = (r"spatial_block\.attn\.qkv\.bias\[1\]$",)  # one number is added to all scores of a query
    torch_names: ClassVar = {"timm": _NUMBERED, "official": _OFFICIAL}

    def __init__(self, config):
        c = self.config = config
        kw = dict(norm=functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype), dtype=c.dtype)
        kernel, dims, stages = c.down_kernel_size, c.embed_dims, []
        padding = "same" if kernel == 2 else 1
        self.stem = Downsample(c.in_chans, dims[0], 7, stride=4, padding=3, norm_first=False, **_CONV, **kw)
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            down = Downsample(dims[i - 1], dims[i], kernel, stride=2, padding=padding, **_CONV, **kw) if i else None
            block = functools.partial(self._block, dims[i], c.num_heads[i])
            stages.append(Stage(down, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
        self.stages = nnx.List(stages)
        self.head = PooledHead(dims[-1], c.num_classes, drop=c.drop_rate, **kw)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(dims))

    def _block(self, dim, heads, index):
        return DualBlock(self.config, dim, heads)


class FlorenceDaViT(DaViT):
    """The image tower of Florence-2, whose files call the blocks by name."""

    torch_names: ClassVar = {"timm": ()}


def _davit(name, dim, heads, params, gmacs, tags=("",), model=DaViT, **fields):
    dims, heads = (tuple(n * 2**i for i in range(4)) for n in (dim, heads))
    register(
        f"davit_{name}", model, DaViTConfig(embed_dims=dims, num_heads=heads, **fields), params=params, gmacs=gmacs,
        paper="2204.03645", licence="apache-2.0", tags=tags, crop_pct=0.95,
    )  # fmt: skip


_FL = dict(model=FlorenceDaViT, img_size=768, num_classes=0, window_size=12, down_kernel_size=3, florence=True)
_davit("tiny", 96, 3, 28_360_168, 4.5, ("msft_in1k",), depths=(1, 1, 3, 1))
_davit("small", 96, 3, 49_745_896, 8.8, ("msft_in1k",))
_davit("base", 128, 4, 87_954_408, 15.5, ("msft_in1k",))
_davit("large", 192, 6, 196_811_752, 34.37)
_davit("huge", 256, 8, 348_922_856, 60.93)
_davit("giant", 384, 12, 1_406_470_120, 192.34, depths=(1, 1, 12, 3))
# at 768 pixels nobody published multiply-adds: they are counted
_davit("base_fl", 128, 4, 90_370_048, 189.89, {"msft_florence2": dict(hub="microsoft/Florence-2-base")}, **_FL)
_davit("huge_fl", 256, 8, 360_636_416, 743.98, {"msft_florence2": dict(hub="microsoft/Florence-2-large")}, **_FL)
