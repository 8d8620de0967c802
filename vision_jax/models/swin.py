"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021, arXiv:2103.14030).

Attention runs inside windows of a map, with a bias for each relative position; every second block shifts the windows
by half, so that neighbours meet. Between stages 2 x 2 patches merge. Which window and which shift a block has is
decided here; partition, shift and mask are in `kernels.window_attention`, the bias in `layers.window.WindowAttention`.

Official repository: microsoft/Swin-Transformer; compared here with timm's. Two things that the paper does not say: a
window never exceeds the map, and an axis that one window covers is not shifted; a map that windows do not tile is
padded after the shift. A key across the seam of a shift is not seen at all, the released code adds -100 to its score.

The `s3` variants are what Searching the Search Space of Vision Transformer (Chen et al., 2021, arXiv:2111.14725) found:
other windows in some stages and another depth. Official repository: microsoft/Cream, AutoFormerV2.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm, normalise
from vision_jax.layers.patch import PatchEmbed, PatchMerging
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import WindowAttention
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, patch_grid
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class SwinConfig(ModelConfig):
    """A Swin Transformer; `embed_dim` is the paper's C, doubled in each stage, `window_size` its M.

    `window_sizes`: one for each stage in its place, or None.
    """

    patch_size: int | tuple = 4
    embed_dim: int = 96
    depths: tuple = (2, 2, 6, 2)
    num_heads: tuple = (3, 6, 12, 24)
    window_size: int | tuple = 7
    window_sizes: tuple | None = None
    mlp_ratio: float = 4.0
    proj_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    scan_blocks: bool = False

    def __post_init__(self):
        check(
            len(self.depths) == len(self.num_heads),
            f"depths={self.depths} and num_heads={self.num_heads} differ in length",
        )
        check(
            self.window_sizes is None or len(self.window_sizes) == len(self.depths),
            f"depths={self.depths} and window_sizes={self.window_sizes} differ in length",
        )
        for stage, heads in enumerate(self.num_heads):
            dim = self.embed_dim * 2**stage
            check(
                dim % heads == 0, f"num_heads={self.num_heads}: {heads} does not divide {dim}, stage {stage}'s channels"
            )
        patch_grid(self.img_size, self.patch_size)


def _merging_before(prefix):
    """The authors' and transformers' code count a merging to the stage before it."""
    return (r"^stages\.(\d+)\.downsample", lambda match: f"{prefix}.{int(match[1]) - 1}.downsample")


TIMM = ((r"^stages\.", "layers."), (r"^head\.", "head.fc."))
OFFICIAL = (_merging_before("layers"), (r"^stages\.", "layers."))


def huggingface(prefix):
    """The names of transformers' files on the hub."""
    return (
        (r"^patch_embed\.proj\.", f"{prefix}.embeddings.patch_embeddings.projection."),
        (r"^patch_embed\.norm\.", f"{prefix}.embeddings.norm."),
        _merging_before(f"{prefix}.encoder.layers"),
        (r"^stages\.", f"{prefix}.encoder.layers."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.qkv\.", tuple(f".attention.self.{part}." for part in ("query", "key", "value"))),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.attn\.", ".attention.self."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"^norm\.", f"{prefix}.layernorm."),
        (r"^head\.", "classifier."),
    )


class SwinStage(nnx.Module):
    """Patch merging (None in the first stage), then blocks, then perhaps a norm: [B, H, W, Cin] -> [B, H', W', C]."""

    def __init__(self, downsample, block, rates, *, norm=None, period, scan, remat):
        self.downsample, self.norm = downsample, norm
        self.blocks = Stack(block, rates, period=period, scan=scan, remat=remat)

    def __call__(self, x, train=None):
        x = self.blocks(self.downsample(x) if self.downsample else x, train)
        return self.norm(x) if self.norm else x


class SwinTransformer(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$",)
    torch_names: ClassVar = {"timm": TIMM, "official": OFFICIAL, "hf": huggingface("swin")}
    torch_ignore = (r"\.relative_position_index$", r"\.attn_mask$")
    _linear = Linear

    def __init__(self, config):
        c = self.config = config
        self.patch_embed = PatchEmbed(c.in_chans, c.embed_dim, c.patch_size, norm=self._norm, dtype=c.dtype)
        stages, info, grid, dim = [], [], patch_grid(c.img_size, c.patch_size), c.embed_dim
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            downsample = None
            if i:
                downsample, dim = self._merging(dim, 2 * dim), 2 * dim
                grid = tuple(-(-n // 2) for n in grid)
            block = functools.partial(self._stage_block, i, dim, grid)
            run = dict(period=self._period(), scan=c.scan_blocks, remat=c.remat)
            stages.append(SwinStage(downsample, block, rates, norm=self._stage_norm(i, dim), **run))
            info.append(FeatureInfo(f"stages.{i}", dim, pair(c.patch_size)[0] * 2**i))
        self.stages = nnx.List(stages)
        self.norm = self._last_norm(dim)
        self.head = self._linear(dim, c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(info)

    def _stage_block(self, stage, dim, grid, index):
        """Every second block shifts its windows by half; a window never exceeds the map, and a single one stays."""
        window = self._window(stage)
        window = tuple(min(w, n) for w, n in zip(window, grid, strict=True))
        shift = tuple(w // 2 if index % 2 and n > w else 0 for w, n in zip(window, grid, strict=True))
        return self._block(stage, dim, window, shift)

    def _window(self, stage):
        """The window wanted, (height, width) in tokens."""
        c = self.config
        return pair(c.window_sizes[stage] if c.window_sizes else c.window_size)

    def _period(self):
        """Blocks so many apart are of one structure: plain and shifted windows alternate."""
        return 2

    def _stage_norm(self, stage, dim):
        """The norm of a stage's last map, or None."""

    def _last_norm(self, dim):
        """The norm of the last map, or None."""
        return self._norm(dim)

    def _block(self, stage, dim, window, shift):
        c = self.config
        attn = WindowAttention(dim, c.num_heads[stage], window, shift, proj_drop=c.proj_drop_rate, dtype=c.dtype)
        mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, dtype=c.dtype)
        return Block(dim, attn=attn, mlp=mlp, norm=self._norm, dtype=c.dtype)

    def _merging(self, din, dout):
        return PatchMerging(din, dout, norm=self._norm, dtype=self.config.dtype)

    def _norm(self, dim):
        return LayerNorm(dim, epsilon=1e-5, dtype=self.config.dtype)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C], normalised.

        pyramid=True gives the maps after the stages in `out_indices` instead, not normalised.
        """
        self.check_size(images)
        maps = self.run_stages(self.patch_embed(images), train)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else normalise(self.norm, maps[-1])

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block (a merging with its next), the head."""
        groups, group = [(r"^patch_embed", 0)], 1
        for i, depth in enumerate(self.config.depths):
            groups.append((rf"^stages\.{i}\.downsample", group))
            groups += [(rf"^stages\.{i}\.blocks\.{j}\.", group + j) for j in range(depth)]
            group += depth
        return (*groups, (r"", group))


SIZES = {  # size -> (embed_dim, depths, num_heads), the paper's and Swin V2's too
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def _swin(size, window_size, img_size, params, gmacs, tags):
    embed_dim, depths, num_heads = SIZES[size]
    register(
        f"swin_{size}_patch4_window{window_size}_{img_size}", SwinTransformer,
        SwinConfig(img_size=img_size, embed_dim=embed_dim, depths=depths, num_heads=num_heads, window_size=window_size),
        params=params, gmacs=gmacs, paper="2103.14030", licence="mit", crop_pct=0.9 if img_size == 224 else 1.0,
        tags={tag: {"num_classes": 21841} if tag == "ms_in22k" else {} for tag in tags},
    )  # fmt: skip


_swin("tiny", 7, 224, 28_288_354, 4.5, ("ms_in1k", "ms_in22k_ft_in1k", "ms_in22k"))
_swin("small", 7, 224, 49_606_258, 8.7, ("ms_in22k_ft_in1k", "ms_in1k", "ms_in22k"))
_swin("base", 7, 224, 87_768_224, 15.4, ("ms_in22k_ft_in1k", "ms_in1k", "ms_in22k"))
_swin("base", 12, 384, 87_903_584, 47.1, ("ms_in22k_ft_in1k", "ms_in1k", "ms_in22k"))
_swin("large", 7, 224, 196_532_476, 34.5, ("ms_in22k_ft_in1k", "ms_in22k"))
_swin("large", 12, 384, 196_735_516, 103.9, ("ms_in22k_ft_in1k", "ms_in22k"))


def _s3(size, depths, window_sizes, params, gmacs):
    register(
        f"swin_s3_{size}_224", SwinTransformer, SwinConfig(depths=depths, window_sizes=window_sizes),
        params=params, gmacs=gmacs, paper="2111.14725", licence="mit", tags=("ms_in1k",), crop_pct=0.9,
    )  # fmt: skip


_s3("tiny", (2, 2, 6, 2), (7, 7, 14, 7), 28_328_674, 4.64)
_s3("small", (2, 2, 18, 2), (14, 14, 14, 7), 49_737_298, 9.43)
_s3("base", (2, 2, 30, 2), (7, 7, 14, 7), 71_125_762, 13.69)
