"""RepViT: Revisiting Mobile CNN From ViT Perspective (Wang et al., 2023, arXiv:2307.09283).

A MobileNet put into the shape of a transformer: the depthwise convolution moves before the two pointwise ones and
becomes the token mixer, those become the channel mixer. While training the token mixer is three branches, of 3x3 and
1x1 convolutions and a shortcut, which `reparameterize()` merges into one convolution. Every other block weighs its
channels (squeeze-and-excitation). Two heads, one for the labels and one for a teacher's, are averaged in evaluation.
Official repository: THU-MIG/RepViT; compared here with timm's, to which its weights were ported.

The first release (`legacy`) has a norm on the 1x1 branch, the second one after the sum. Neither has stochastic depth;
here `drop_path_rate` grows linearly over the blocks, as in other families.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.block import MapBlock
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv import Conv
from vision_jax.layers.conv_norm import (
    ConvNorm,
    ConvNormMlp,
    ConvNormStem,
    add_to_middle,
    norm_after,
)
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.norm_head import PooledNormHeads
from vision_jax.layers.seam import middle_tap
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import torch_default, zeros
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class RepViTConfig(ModelConfig):
    """A RepViT; a number a stage for `depths` and `embed_dims`.

    `distilled`: whether there is a head for a teacher's labels; `legacy`: the first release's token mixer.
    """

    depths: tuple = (2, 2, 14, 2)
    embed_dims: tuple = (48, 96, 192, 384)
    mlp_ratio: float = 2.0
    distilled: bool = True
    legacy: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims")
        check(self.embed_dims[0] % 2 == 0, f"embed_dims={self.embed_dims}: the first must be even")


class RepDepthwise(nnx.Module):
    """norm(norm(conv3x3(x)) + conv1x1(x) + x), depthwise, [B, H, W, C] -> [B, H, W, C].

    Or norm(conv3x3(x)) + norm(conv1x1(x)) + x with `legacy` (the paper's figure 3).
    """

    def __init__(self, dim, *, legacy, dtype):
        kw = dict(groups=dim, dtype=dtype)
        self.conv = ConvNorm(dim, dim, 3, **kw)
        if legacy:
            self.conv1, self.bn = ConvNorm(dim, dim, **kw), None
        else:
            self.conv1 = Conv(dim, dim, 1, init=torch_default, bias_init=torch_default, **kw)
            self.bn = BatchNorm(dim, dtype=dtype)

    def __call__(self, x, train=None):
        y = self.conv(x, train)
        if self.conv1:
            x = middle_tap(x)
            y = y + (self.conv1(x) if self.bn else self.conv1(x, train)) + x
        return self.bn(y, train) if self.bn else y

    def reparameterize(self):
        """Leaves the 3x3 convolution."""
        if self.conv1 is None:
            return
        for branch in (self.conv, self.conv1):
            if isinstance(branch, ConvNorm):
                branch.reparameterize()
        merged, point = self.conv.conv, self.conv1 if self.bn else self.conv1.conv
        add_to_middle(merged, point.kernel[...] + 1)
        merged.bias.set_value(merged.bias[...] + point.bias[...])
        if self.bn:
            norm_after(merged, self.bn)
        self.conv1 = self.bn = None


class RepViTBlock(nnx.Module):
    """Token mixer, perhaps squeeze-and-excitation, channel mixer: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, dim, *, squeeze):
        self.token_mixer = RepDepthwise(dim, legacy=c.legacy, dtype=c.dtype)
        self.se = SqueezeExcite(dim, round_channels(dim / 4, limit=0), dtype=c.dtype) if squeeze else None
        self.channel_mixer = _mixer(c, dim)

    def __call__(self, x, train=None):
        x = self.token_mixer(x, train)
        return self.channel_mixer(self.se(x) if self.se else x, train)


def _mixer(c, dim):
    """x + drop_path(mlp(x))."""
    mlp = ConvNormMlp(dim, int(dim * c.mlp_ratio), act=gelu, scale_init=zeros, dtype=c.dtype)
    return MapBlock(dim, attn=None, mlp=mlp, dtype=c.dtype)


class Downsample(nnx.Module):
    """A block, a strided depthwise convolution, a pointwise one, an MLP: [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, c, din, dout):
        self.pre_block = RepViTBlock(c, din, squeeze=False)
        self.spatial_downsample = ConvNorm(din, din, 3, stride=2, groups=din, dtype=c.dtype)
        self.channel_downsample = ConvNorm(din, dout, dtype=c.dtype)
        self.ffn = _mixer(c, dout)

    def __call__(self, x, train=None):
        x = self.spatial_downsample(self.pre_block(x, train), train)
        return self.ffn(self.channel_downsample(x, train), train)


class RepViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; a pair of them, of two heads, while training."""

    classifier = ("head",)
    torch_names: ClassVar = {
        "timm": (
            (r"^stem\.(\d)\.", lambda match: f"stem.conv{int(match[1]) + 1}."),
            (r"\.conv\.(weight|bias)$", r".c.\1"),
            (r"\.fc\.(weight|bias)$", r".l.\1"),
            (r"\.(channel_mixer|ffn)\.mlp\.fc(\d)\.", r".\1.conv\2."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        self.stem = ConvNormStem(c.in_chans, (c.embed_dims[0] // 2, c.embed_dims[0]), act=gelu, dtype=c.dtype)
        stages = []
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            down = Downsample(c, c.embed_dims[i - 1], dim) if i else None
            block = functools.partial(self._block, dim)
            stages.append(Stage(down, Stack(block, rates, period=2, scan=c.scan_blocks, remat=c.remat)))
        self.stages = nnx.List(stages)
        self.head = PooledNormHeads(
            c.embed_dims[-1], c.num_classes, distilled=c.distilled, drop=c.drop_rate, dtype=c.dtype
        )  # fmt: skip
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def _block(self, dim, index):
        return RepViTBlock(self.config, dim, squeeze=index % 2 == 0)

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        return self.stem(images, train)


def _repvit(name, width, depths, params, gmacs, tags=("dist_300e_in1k", "dist_450e_in1k"), **fields):
    register(
        f"repvit_{name}", RepViT,
        RepViTConfig(depths=depths, embed_dims=tuple(width * 2**i for i in range(4)), **fields), params=params,
        gmacs=gmacs, paper="2307.09283", licence="apache-2.0", tags=tags, crop_pct=0.95,
    )  # fmt: skip


_FIRST = dict(tags=("dist_in1k",), legacy=True)
_repvit("m1", 48, (2, 2, 14, 2), 5_485_248, 0.8, **_FIRST)
_repvit("m2", 64, (2, 2, 12, 2), 8_797_984, 1.3, **_FIRST)
_repvit("m3", 64, (4, 4, 18, 2), 10_682_832, 1.9, **_FIRST)
_repvit("m0_9", 48, (2, 2, 14, 2), 5_489_328, 0.8)
_repvit("m1_0", 56, (2, 2, 14, 2), 7_302_796, 1.1)
_repvit("m1_1", 64, (2, 2, 12, 2), 8_802_912, 1.3)
_repvit("m1_5", 64, (4, 4, 24, 4), 14_644_432, 2.3)
_repvit("m2_3", 80, (6, 6, 34, 2), 23_688_792, 4.5)
