"""MetaFormer: MetaFormer Is Actually What You Need for Vision (Yu et al., 2022, arXiv:2111.11418), and MetaFormer
Baselines for Vision (Yu et al., 2022, arXiv:2210.13452).

The layout of a transformer does most of the work, whatever mixes its tokens: norm, token mixer, residual; norm, MLP,
residual; in four stages. The mixer is an argument here: nothing (IdentityFormer), a fixed random matrix (RandFormer),
an average of neighbours (PoolFormer), a depthwise convolution between pointwise ones (ConvFormer), attention in the
last two stages (CAFormer). The second paper also brings StarReLU, scaled shortcuts, norms without bias and an MLP head.

Official repositories: sail-sg/poolformer and sail-sg/metaformer; compared here with timm's, which has no IdentityFormer
and no RandFormer. Where they differ this follows timm: PoolFormer's last norm comes after the average, not before, and
the norm inside the MLP head has an epsilon of 1e-6, not 1e-5. StarReLU starts from scale 1 and bias 0, as both do, not
from the paper's 0.8944 and -0.4472.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.layers.attention import Attention
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.pooling import pool_mixer
from vision_jax.layers.seam import seam
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel
from vision_jax.parameters import buffer, ones, param, zeros
from vision_jax.registry import check, register


class StarReLU(nnx.Module):
    """scale * relu(x)^2 + bias, two learned numbers, [..., C] -> [..., C] (arXiv:2210.13452, section 3.2)."""

    def __init__(self, *, dtype):
        self.dtype = dtype
        self.scale, self.bias = param((1,), ones), param((1,), zeros)

    def __call__(self, x):
        return seam(self.scale[...].astype(self.dtype) * jnp.square(jax.nn.relu(x)) + self.bias[...].astype(self.dtype))


# The token mixers, built as mixer(dim, tokens=, drop=, dtype=) and called as mixer(x, train): [B, H, W, C] to the same.


class Identity(nnx.Module):
    """No mixing."""

    def __init__(self, dim, *, tokens, drop, dtype):
        pass

    def __call__(self, x, train=None):
        return x


class RandomMixing(nnx.Module):
    """Every pixel becomes a fixed random average of all `tokens` pixels; the matrix is not trained."""

    def __init__(self, dim, *, tokens, drop, dtype):
        self.dtype = dtype
        self.random_matrix = buffer((tokens, tokens), SoftmaxOfUniform())

    def __call__(self, x, train=None):
        matrix, (B, H, W, C) = self.random_matrix[...].astype(self.dtype), x.shape
        if len(matrix) != H * W:
            raise InputError(f"a map of {H} x {W} given, the random matrix is for {len(matrix)} pixels: img_size=...")
        return jnp.einsum("mn,bnc->bmc", matrix, x.reshape(B, H * W, C)).reshape(x.shape)


class Pooling(nnx.Module):
    """What the 3x3 neighbours have more than the pixel."""

    def __init__(self, dim, *, tokens, drop, dtype):
        pass

    def __call__(self, x, train=None):
        return pool_mixer(x)


class SeparableConv(nnx.Module):
    """Pointwise to twice the channels, StarReLU, 7x7 depthwise, pointwise back (MobileNetV2: arXiv:1801.04381)."""

    def __init__(self, dim, *, tokens, drop, dtype):
        self.pwconv1 = PointwiseConv(dim, 2 * dim, bias=False, dtype=dtype)
        self.act1 = StarReLU(dtype=dtype)
        self.dwconv = Conv(2 * dim, 2 * dim, 7, groups=2 * dim, bias=False, dtype=dtype)
        self.pwconv2 = PointwiseConv(2 * dim, dim, bias=False, dtype=dtype)

    def __call__(self, x, train=None):
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class MapAttention(Attention):
    """Self-attention among all pixels, heads of 32 channels, no biases."""

    def __init__(self, dim, *, tokens, drop, dtype):
        super().__init__(dim, dim // 32, qkv_bias=False, proj_bias=False, proj_drop=drop, dtype=dtype)

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        return super().__call__(x.reshape(B, H * W, C), train).reshape(x.shape)


MIXERS = {
    "identity": Identity,
    "random": RandomMixing,
    "pool": Pooling,
    "conv": SeparableConv,
    "attention": MapAttention,
}


@dataclasses.dataclass(frozen=True)
class SoftmaxOfUniform:
    """The softmax over the last axis of uniform numbers in 0..1."""

    def __call__(self, draw, shape):
        return jax.nn.softmax(draw.uniform(shape), axis=-1)


@dataclasses.dataclass(frozen=True)
class MetaFormerConfig(ModelConfig):
    """A MetaFormer.

    `mixers`: the token mixer of each stage, "identity", "random", "pool", "conv" or "attention". `norm`: "layer" over
    the channels, or "group" over a whole example. `downsample_norm`: whether stem and downsamplings have a norm. `act`:
    "star_relu" or "gelu". `res_scale_init`: of each stage's shortcuts, None for no scale. `mlp_head`: two linear maps
    with squared ReLU and a norm between. `conv_mlp`: weight files hold the MLPs as 1x1 convolutions, but for stages of
    attention; the computation is the same.
    """

    depths: tuple = (2, 2, 6, 2)
    embed_dims: tuple = (64, 128, 320, 512)
    mixers: tuple = ("pool", "pool", "pool", "pool")
    norm: str = "group"
    norm_bias: bool = False
    norm_epsilon: float = 1e-6
    downsample_norm: bool = True
    act: str = "star_relu"
    mlp_ratio: float = 4.0
    mlp_bias: bool = False
    conv_mlp: bool = True
    layer_scale_init: float | None = None
    res_scale_init: tuple = (None, None, 1.0, 1.0)
    mlp_head: bool = False
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        for field in ("embed_dims", "mixers", "res_scale_init"):
            value = getattr(self, field)
            check(len(value) == len(self.depths), f"{field}={value} needs one entry for each of depths={self.depths}")
        for dim, mixer in zip(self.embed_dims, self.mixers, strict=True):
            check(mixer in MIXERS, f"mixers={self.mixers}: each one of {tuple(MIXERS)}")
            check(
                mixer != "attention" or dim % 32 == 0,
                f"embed_dims={self.embed_dims}: stages of attention need multiples of 32",
            )
        check(self.norm in ("layer", "group"), f"norm={self.norm!r}: one of 'layer', 'group'")
        check(self.act in ("star_relu", "gelu"), f"act={self.act!r}: one of 'star_relu', 'gelu'")


class MlpHead(nnx.Module):
    """Linear to four times the channels, squared ReLU, norm, linear: [B, dim] -> [B, num_classes]."""

    def __init__(self, dim, num_classes, *, dtype):
        self.fc1, self.fc2 = Linear(dim, 4 * dim, dtype=dtype), Linear(4 * dim, num_classes, dtype=dtype)
        self.norm = LayerNorm(4 * dim, epsilon=1e-6, dtype=dtype)

    def __call__(self, x):
        return self.fc2(self.norm(jnp.square(jax.nn.relu(self.fc1(x)))))


_TIMM = (
    (r"\.attn\.", ".token_mixer."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.scale"),
    (r"\.rs(\d)\.gamma$", r".res_scale\1.scale"),
)
_OFFICIAL = (  # sail-sg/metaformer's; it fits where conv_mlp=False and no mixer is "conv"
    *_TIMM,
    (r"^stem\.norm\.", "downsample_layers.0.post_norm."),
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


class MetaFormer(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    inert = (r"norm1\.bias$",)  # PoolFormer's, the only norms with one: an average less its middle is 0 for a constant
    torch_names: ClassVar = {"timm": _TIMM, "official": _OFFICIAL}

    def __init__(self, config):
        c = self.config = config
        layer_norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        plain = functools.partial(layer_norm, bias=False) if c.downsample_norm else None
        norm = functools.partial(
            {"layer": LayerNorm, "group": GroupNorm}[c.norm], epsilon=c.norm_epsilon, bias=c.norm_bias, dtype=c.dtype
        )
        self.stem = Downsample(
            c.in_chans, c.embed_dims[0], 7, stride=4, padding=2, norm=plain, norm_first=False, dtype=c.dtype
        )
        height, width = ((size - 3) // 4 + 1 for size in pair(c.img_size))
        stages, info, din = [], [], c.embed_dims[0]
        rates = linear_rates(c.drop_path_rate, c.depths)
        for i, (dim, mixer, res_scale) in enumerate(zip(c.embed_dims, c.mixers, c.res_scale_init, strict=True)):
            if i:
                height, width = (height + 1) // 2, (width + 1) // 2
            linear = functools.partial(
                PointwiseConv if c.conv_mlp and mixer != "attention" else Linear, bias=c.mlp_bias
            )

            def block(index, dim=dim, mixer=mixer, res_scale=res_scale, tokens=height * width, linear=linear):
                act = StarReLU(dtype=c.dtype) if c.act == "star_relu" else gelu
                mlp = Mlp(dim, int(dim * c.mlp_ratio), act=act, drop=c.proj_drop_rate, linear=linear, dtype=c.dtype)
                return Block(
                    dim, attn=MIXERS[mixer](dim, tokens=tokens, drop=c.proj_drop_rate, dtype=c.dtype), mlp=mlp,
                    norm=norm, layer_scale=c.layer_scale_init, res_scale=res_scale, dtype=c.dtype,
                )  # fmt: skip

            down = Downsample(din, dim, 3, stride=2, padding=1, norm=plain, dtype=c.dtype) if i else None
            stages.append(Stage(down, Stack(block, rates[i], scan=c.scan_blocks, remat=c.remat)))
            info.append(FeatureInfo(f"stages.{i}", dim, 4 * 2**i))
            din = dim
        self.stages, self.feature_info = nnx.List(stages), tuple(info)
        classifier = MlpHead if c.mlp_head else Linear
        self.head = PooledHead(
            din, c.num_classes, norm=layer_norm, drop=c.drop_rate, classifier=classifier, dtype=c.dtype
        )


_WIDE = (96, 192, 384, 768)
_SIZES = {  # depths, embed_dims
    "s12": ((2, 2, 6, 2), (64, 128, 320, 512)),
    "s24": ((4, 4, 12, 4), (64, 128, 320, 512)),
    "s36": ((6, 6, 18, 6), (64, 128, 320, 512)),
    "m36": ((6, 6, 18, 6), _WIDE),
    "m48": ((8, 8, 24, 8), _WIDE),
}
_SIZES_WITH_MLP_HEAD = {
    "s18": ((3, 3, 9, 3), (64, 128, 320, 512)),
    "s36": ((3, 12, 18, 3), (64, 128, 320, 512)),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}
_SAIL = {
    "sail_in1k": {},
    "sail_in1k_384": {"img_size": 384},
    "sail_in22k_ft_in1k": {},
    "sail_in22k_ft_in1k_384": {"img_size": 384},
    "sail_in22k": {"num_classes": 21841},
}
_POOLFORMER = dict(
    norm_bias=True, norm_epsilon=1e-5, downsample_norm=False, act="gelu", mlp_bias=True, res_scale_init=(None,) * 4
)


def _metaformer(name, sizes, counts, paper="2210.13452", reference="timm", tags=("sail_in1k",), crop_pct=1.0, **fields):
    for size, (params, gmacs) in counts.items():
        depths, embed_dims = sizes[size]
        register(
            f"{name}_{size}", MetaFormer, MetaFormerConfig(depths=depths, embed_dims=embed_dims, **fields),
            params=params, gmacs=gmacs, paper=paper, reference=reference, licence="apache-2.0", tags=tags,
            crop_pct=crop_pct,
        )  # fmt: skip


# fmt: off
_metaformer("poolformer", _SIZES, {"s12": (11_915_176, 1.8), "s24": (21_388_968, 3.4), "s36": (30_862_760, 5.0)},
            paper="2111.11418", crop_pct=0.9, layer_scale_init=1e-5, **_POOLFORMER)
_metaformer("poolformer", _SIZES, {"m36": (56_172_520, 8.8), "m48": (73_473_448, 11.6)},
            paper="2111.11418", crop_pct=0.95, layer_scale_init=1e-6, **_POOLFORMER)
_metaformer("poolformerv2", _SIZES,
            {"s12": (11_891_712, 1.8), "s24": (21_341_464, 3.4), "s36": (30_791_216, 5.0), "m36": (56_077_168, 8.8),
             "m48": (73_346_056, 11.5)})
_metaformer("identityformer", _SIZES,
            {"s12": (11_891_712, 1.8), "s24": (21_341_464, 3.4), "s36": (30_791_216, 5.0), "m36": (56_077_168, 8.8),
             "m48": (73_346_056, 11.5)},
            reference="sail-sg/metaformer", tags=("",), mixers=("identity",) * 4, conv_mlp=False)
_metaformer("randformer", _SIZES,  # the random matrices count
            {"s12": (12_127_010, 1.9), "s24": (21_812_060, 3.5), "s36": (31_497_110, 5.2), "m36": (56_783_062, 9.0),
             "m48": (74_287_248, 11.9)},
            reference="sail-sg/metaformer", tags=("",), mixers=("identity", "identity", "random", "random"),
            conv_mlp=False)
_metaformer("convformer", _SIZES_WITH_MLP_HEAD,
            {"s18": (26_774_448, 3.9), "s36": (40_012_152, 7.6), "m36": (57_051_640, 12.8), "b36": (99_882_616, 22.6)},
            tags=_SAIL, mixers=("conv",) * 4, norm="layer", mlp_head=True)
_metaformer("caformer", _SIZES_WITH_MLP_HEAD,
            {"s18": (26_341_656, 4.1), "s36": (39_297_102, 8.0), "m36": (56_204_878, 13.2), "b36": (98_753_614, 23.2)},
            tags=_SAIL, mixers=("conv", "conv", "attention", "attention"), norm="layer", mlp_head=True)
# fmt: on
