"""CoAtNet: Marrying Convolution and Attention for All Data Sizes (Dai et al., 2021, arXiv:2106.04803).

Two stages of convolution (MBConv), which generalises, then two of attention over the whole map, which has the capacity;
a bias for each offset between query and key, added before the softmax, joins the two (section 2.1). No code was
released; compared here with timm's.

`coatnet_0` to `coatnet_5` follow the paper's table 3 with timm's choices: the stride lies in the depthwise convolution,
and averaging, not a maximum, halves the map elsewhere. The `_rw` variants are timm's own, with SiLU and narrower
expansions, and differ in details that timm tried in turn (`CoAtNetConfig` lists them); `_rmlp_`: a small network makes
the bias; `_bn_`: batch norms before attention; `_cc_`: stages of attention begin with a convolution. CoAtNeXt has
ConvNeXt's block for MBConv.
"""

import dataclasses
import functools
import re

import jax

from vision_jax.layers.attention import HeadsFirstConvQKV
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mbconv import Shrink, halved
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import BatchNorm
from vision_jax.models.base import check_stages
from vision_jax.models.conv_attention import ConvAttention, ConvAttentionConfig, RelativeAttention, conv_block
from vision_jax.parameters import torch_default
from vision_jax.registry import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, check, register

ACTIVATIONS = {"gelu": gelu, "silu": jax.nn.silu, "relu": jax.nn.relu}
POOLS = ("avg", "max")


@dataclasses.dataclass(frozen=True)
class CoAtNetConfig(ConvAttentionConfig):
    """A CoAtNet; see `ConvAttentionConfig` too.

    `conv_depths`: blocks of convolution that each stage begins with; the others are of attention. `act`, `se_act`: the
    activations of the convolutions and of their squeeze-and-excitation; `pre_act`: one follows MBConv's first norm too.
    `pool`: what halves the map in shortcuts and before attention, "avg" or "max"; `shrink_first`: MBConv averages
    before its expansion, and has no stride. `se_first`: squeeze-and-excitation comes before the norm. `conv_bias`,
    `shortcut_bias`: of MBConv's last map and shortcut, and of attention's shortcut. `batch_norm`: in place of the layer
    norms.
    """

    depths: tuple = (2, 3, 5, 2)
    conv_depths: tuple = (2, 3, 0, 0)
    embed_dims: tuple = (96, 192, 384, 768)
    act: str = "gelu"
    se_act: str = "silu"
    pre_act: bool = False
    pool: str = "avg"
    shrink_first: bool = False
    se_first: bool = False
    conv_bias: bool = True
    shortcut_bias: bool = True
    batch_norm: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_stages(self, "conv_depths")
        for depth, convs in zip(self.depths, self.conv_depths, strict=True):
            check(0 <= convs <= depth, f"conv_depths={self.conv_depths}: 0 to depths={self.depths}")
        for act in (self.act, self.se_act):
            check(act in ACTIVATIONS, f"act={act!r}: one of {', '.join(map(repr, ACTIVATIONS))}")
        check(self.pool in POOLS, f"pool={self.pool!r}: one of {', '.join(map(repr, POOLS))}")
        reduction = 2 ** (len(self.depths) + 1)
        near = tuple(max(round(n / reduction), 1) * reduction for n in pair(self.img_size))
        fits = near == pair(self.img_size)
        check(fits, f"img_size={self.img_size} is not a multiple of {reduction}; the nearest is {near}")

    @property
    def conv_act(self):
        """The activation of the stem and of the convolutions' blocks."""
        return ACTIVATIONS[self.act]

    @property
    def norm(self):
        """`(dim) -> module`, the norm before attention and MLPs, and the last."""
        return functools.partial(BatchNorm, epsilon=1e-6, dtype=self.dtype) if self.batch_norm else super().norm


class MapAttention(RelativeAttention):
    """Attention over a whole map, which `pool` halves before: [B, H, W, din] -> [B, h, w, dim]."""

    def __init__(self, c, din, dim, *, size, pool):
        self.pool = pool
        inner = dim if c.expand_output else din
        super().__init__(c, din, inner, dim, window_size=size, qkv=HeadsFirstConvQKV, linear=PointwiseConv)

    def __call__(self, x, train=None):
        return super().__call__(halved(x, self.pool) if self.pool else x, train)


def convolution(c, din, dim, stride):
    """MBConv or ConvNeXt's block, [B, H, W, din] -> [B, H/stride, W/stride, dim]."""
    mbconv = ("pre_act", "pool", "shrink_first", "se_first")
    how = dict({name: getattr(c, name) for name in mbconv}, bias=c.conv_bias, se_act=ACTIVATIONS[c.se_act])
    return conv_block(c, din, dim, stride, init=dict(init=torch_default, bias_init=torch_default), **how)


def transformer(c, din, dim, stride, size):
    """Attention over a map of `size` and an MLP, [B, H, W, din] -> [B, H/stride, W/stride, dim] (equation 4)."""
    linear = functools.partial(PointwiseConv, **c.mlp_init)
    shortcut = Shrink(din, dim, pool=c.pool, bias=c.shortcut_bias, init=c.linear_init, dtype=c.dtype)
    return Block(
        dim, din=din, shortcut=shortcut if stride == 2 else None, norm=c.norm,
        attn=MapAttention(c, din, dim, size=size, pool=c.pool if stride == 2 else None),
        mlp=Mlp(dim, 4 * dim, linear=linear, dtype=c.dtype), layer_scale=c.layer_scale_init, dtype=c.dtype,
    )  # fmt: skip


class CoAtNet(ConvAttention):
    """Images [B, H, W, C] of the configured size -> logits [B, num_classes]."""

    def __init__(self, config):
        c = config

        def block(i, j, din):
            dim, stride = c.embed_dims[i], 1 if j else 2
            if j < c.conv_depths[i]:
                return convolution(c, din, dim, stride)
            return transformer(c, din, dim, stride, tuple(n // 2 ** (i + 2) for n in pair(c.img_size)))

        super().__init__(c, block)

    @property
    def torch_names(self):
        """In timm the pooling before attention stands beside its norm."""
        first = [f"stages.{i}.blocks.0.norm1." for i, convs in enumerate(self.config.conv_depths) if convs == 0]
        return {"timm": tuple((f"^{re.escape(name)}", f"{name}norm.") for name in first)}

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead, not normalised: after the stem and after each stage.
        """
        self.check_size(images)
        return super().forward_features(images, train, pyramid, out_indices)


_RW = dict(act="silu", expand_output=False)
_COAT = dict(_RW, pre_act=True, conv_bias=False, se_act="relu")
_EARLY = dict(_COAT, se_first=True, shortcut_bias=False)
_SILU = dict(_COAT, se_act="silu")
_MLP = dict(position="mlp")
_MLP_384 = dict(_MLP, position_hidden=384)
_SCALED = dict(_SILU, layer_scale_init=1e-6)
_NEXT = dict(conv="convnext", expand_output=False, conv_scale_init=1e-5, normal_init=True)
_PICO, _NANO, _ZERO, _ONE = (2, 3, 5, 2), (3, 4, 6, 3), (2, 3, 7, 2), (2, 6, 14, 2)
_12K = {"sw_in12k_ft_in1k": {}, "sw_in12k": dict(num_classes=11821)}
_1K = ("sw_in1k",)


def _coatnet(
    name, depths, width, stem, params, gmacs, tags=("",), *, size=224, convs=None, crop_pct=0.95, crop_mode="center",
    mean=INCEPTION_MEAN, std=INCEPTION_STD, **fields,
):  # fmt: skip
    dims = {"embed_dims": tuple(width * 2**i for i in range(4)), "conv_depths": convs or (*depths[:2], 0, 0)}
    register(
        f"{name}_{size}", CoAtNet, CoAtNetConfig(img_size=size, depths=depths, stem_dims=stem, **dims | fields),
        params=params, gmacs=gmacs, paper="2106.04803", licence="apache-2.0", tags=tags,
        crop_pct=crop_pct, crop_mode=crop_mode, mean=mean, std=std,
    )  # fmt: skip


def _paper(name, depths, width, stem, params, gmacs, **fields):
    _coatnet(name, depths, width, (stem, stem), params, gmacs, **{"head_hidden": 8 * width, **fields})


_paper("coatnet_0", _PICO, 96, 64, 25_036_820, 4.58)
_paper("coatnet_1", _ONE, 96, 64, 42_225_776, 8.70)
_paper("coatnet_2", _ONE, 128, 128, 74_684_744, 16.50)
_paper("coatnet_3", _ONE, 192, 192, 166_966_264, 36.56)
_paper("coatnet_4", (2, 12, 28, 2), 192, 192, 275_425_288, 62.48)
_paper("coatnet_5", (2, 12, 28, 2), 256, 192, 687_472_008, 145.49, embed_dims=(256, 512, 1280, 2048))

_coatnet("coatnet_pico_rw", _PICO, 64, (32, 64), 10_851_364, 2.05, **_RW)
_coatnet("coatnet_nano_rw", _NANO, 64, (32, 64), 15_141_244, 2.41, _1K, crop_pct=0.9, shrink_first=True, **_RW)
_coatnet("coatnet_0_rw", _ZERO, 96, (32, 64), 27_435_562, 4.43, _1K, shrink_first=True, **_EARLY)
_coatnet("coatnet_1_rw", _ONE, 96, (32, 64), 41_721_502, 8.04, _1K, **_EARLY)
_coatnet("coatnet_2_rw", _ONE, 128, (64, 128), 73_868_400, 15.09, _12K, **_SILU)
_coatnet("coatnet_3_rw", _ONE, 192, (96, 192), 181_805_305, 33.44, ("sw_in12k",), num_classes=11821, **_SCALED)
_coatnet(
    "coatnet_bn_0_rw", _ZERO, 96, (32, 64), 27_435_562, 4.67, _1K, mean=IMAGENET_MEAN, std=IMAGENET_STD,
    batch_norm=True, **_EARLY,
)  # fmt: skip
_coatnet("coatnet_rmlp_nano_rw", _NANO, 64, (32, 64), 15_145_116, 2.62, _1K, crop_pct=0.9, **_MLP_384, **_RW)
_coatnet("coatnet_rmlp_0_rw", _ZERO, 96, (32, 64), 27_446_074, 4.72, **_MLP, **_COAT)
_coatnet(
    "coatnet_rmlp_1_rw", _ONE, 96, (32, 64), 41_691_982, 7.85, _1K, pool="max", shrink_first=True, **_MLP_384, **_EARLY
)  # fmt: skip
_coatnet("coatnet_rmlp_1_rw2", _ONE, 96, (32, 64), 41_724_622, 8.11, _12K, **_MLP, **_COAT)
_coatnet("coatnet_rmlp_2_rw", _ONE, 128, (64, 128), 73_881_264, 15.18, {**_12K, "sw_in1k": {}}, **_MLP, **_SCALED)
_coatnet(
    "coatnet_rmlp_2_rw", _ONE, 128, (64, 128), 73_881_264, 47.69, ("sw_in12k_ft_in1k",), size=384, crop_pct=1.0,
    crop_mode="squash", **_MLP, **_SCALED,
)  # fmt: skip
_coatnet("coatnet_rmlp_3_rw", _ONE, 192, (96, 192), 165_152_788, 33.56, **_MLP, **_SCALED)
_coatnet("coatnet_nano_cc", _NANO, 64, (32, 64), 13_757_328, 2.24, convs=(3, 4, 1, 1), shrink_first=True, **_COAT)
_coatnet("coatnext_nano_rw", _NANO, 64, (32, 64), 14_701_244, 2.47, _1K, crop_pct=0.9, **_NEXT)
