"""RegNet: Designing Network Design Spaces (Radosavovic et al., 2020, arXiv:2003.13678), and RegNetZ.

Residual networks whose widths grow linearly with depth, rounded to a few stages: five numbers describe one (section
3.3, equations 2 to 4). RegNetY has squeeze-and-excitation besides; RegNetZ (Dollár et al., 2021, arXiv:2103.06877)
inverted bottlenecks, no activation where blocks meet and no shortcut where shapes change; timm's RegNetV normalises and
activates first. Official repository: facebookresearch/pycls; compared here with timm's. Where it is torchvision's that
are rounded differently, the names end in `_tv`.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv import Conv
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.norm import BatchNorm, normalise
from vision_jax.layers.pooling import avg_pool
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, numbered
from vision_jax.parameters import Normal, kaiming_normal, ones, zeros
from vision_jax.registry import check, register

ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}
SHORTCUTS = ("conv", "avg", None)


@dataclasses.dataclass(frozen=True)
class RegNetConfig(ModelConfig):
    """A RegNet; the paper's d, w0, wa, wm, g and b come first.

    Attributes:
      depth: number of blocks.
      initial_width, slope, multiplier: block j has about `initial_width + slope j` channels, rounded to
        `initial_width` times a power of `multiplier`.
      group_width: channels of a group of the 3x3 convolutions.
      ratio: channels inside a block, as a share of those that it gives.
      group_share: widths are multiples of the groups' next to them, but no less than this share; 0 for the next ones.
      se_ratio: channels of the squeeze-and-excitation, as a share of the block's input; 0 for none.
      stem_dim: channels of the first convolution.
      head_dim: channels of a last 1x1 convolution; 0 for none.
      shortcut: where shapes change: "conv", a strided 1x1 convolution; "avg", a mean and one; None for no shortcut.
      linear: blocks end without an activation.
      pre_norm: norms and activations come before the convolutions.
      norm_width: channels of a group of the norms; 0 for batch norms.
      zero_init_last: blocks start as their shortcuts, where a norm ends them.
      act: activation.
    """

    depth: int = 13
    initial_width: int = 24
    slope: float = 36.44
    multiplier: float = 2.49
    group_width: int = 8
    ratio: float = 1.0
    group_share: float = 0.0
    se_ratio: float = 0.0
    stem_dim: int = 32
    head_dim: int = 0
    shortcut: str | None = "conv"
    linear: bool = False
    pre_norm: bool = False
    norm_width: int = 0
    zero_init_last: bool = True
    act: str = "relu"

    def __post_init__(self):
        check(self.act in ACTIVATIONS, f"act={self.act!r}: one of {tuple(ACTIVATIONS)}")
        check(self.shortcut in SHORTCUTS, f"shortcut={self.shortcut!r}: one of {SHORTCUTS}")
        check(self.shortcut or not self.pre_norm, "pre_norm=True: shortcut=None is not for it")
        grows = self.depth > 0 and self.slope >= 0 and self.multiplier > 1 and self.initial_width > 0
        given = f"depth={self.depth}, initial_width={self.initial_width}, slope={self.slope}"
        check(grows, f"{given}, multiplier={self.multiplier}: positive ones, and a multiplier above 1")

    @property
    def stages(self):
        """(channels out, depth, channels inside, groups) of each."""
        exponents = np.log1p(np.arange(self.depth) * self.slope / self.initial_width) / np.log(self.multiplier)
        widths = self.initial_width * self.multiplier ** np.round(exponents)
        out = []
        for width, depth in zip(*np.unique(8 * np.round(widths / 8).astype(int), return_counts=True), strict=True):
            hidden = int(width * self.ratio)
            group = min(self.group_width, hidden)
            if self.group_share:
                hidden = round_channels(hidden, group, self.group_share)
            else:
                hidden = round(hidden / group) * group
            dim = int(hidden / self.ratio)
            hidden = round(dim * self.ratio)
            out.append((dim, int(depth), hidden, hidden // group))
        return tuple(out)


class Parts:
    """How a network makes the layers of its blocks."""

    def __init__(self, c):
        self.config, self.act = c, ACTIVATIONS[c.act]
        kw = dict(init=kaiming_normal, dtype=c.dtype)
        self.conv_norm = functools.partial(ConvNorm, norm=self.norm, **kw)
        self.pointwise = functools.partial(PointwiseConv, bias=False, **kw)
        self.conv = functools.partial(Conv, bias=False, **kw)

    def norm(self, dim, **how):
        """A norm of `dim` channels."""
        width, how = self.config.norm_width, {"dtype": self.config.dtype, **how}
        return GroupNorm(dim, dim // width, **how) if width else BatchNorm(dim, **how)

    def squeeze(self, din, hidden):
        """The squeeze-and-excitation of a block that takes `din` channels and has `hidden` inside, or None."""
        c, squeezed = self.config, round(din * self.config.se_ratio)
        kw = dict(act=self.act, init=kaiming_normal, bias_init=zeros, dtype=c.dtype)
        return SqueezeExcite(hidden, squeezed, **kw) if c.se_ratio else None


class Bottleneck(nnx.Module):
    """1x1, grouped 3x3, 1x1, each with a norm, beside a shortcut: [B, H, W, din] -> [B, H/stride, W/stride, dout]."""

    def __init__(self, din, dout, hidden, *, stride, groups, parts):
        changes, c, conv = stride > 1 or din != dout, parts.config, parts.conv_norm
        self.act, self.linear, self.adds = parts.act, c.linear, not changes or c.shortcut is not None
        self.conv1 = conv(din, hidden, act=self.act)
        self.conv2 = conv(hidden, hidden, 3, stride=stride, groups=groups, act=self.act)
        self.se = parts.squeeze(din, hidden)
        self.conv3 = conv(hidden, dout, scale_init=zeros if c.zero_init_last else ones)
        self.downsample = conv(din, dout, stride=stride) if changes and self.adds else None

    def __call__(self, x, train=None):
        y = self.conv2(self.conv1(x, train), train)
        y = self.conv3(self.se(y) if self.se else y, train)
        if self.adds:
            y = drop_path(y, train) + (self.downsample(x, train) if self.downsample else x)
        return tap(self, "output", constrain_batch(y if self.linear else self.act(y)))


class PreNormBottleneck(nnx.Module):
    """The same, norms and activations first; the shortcut too takes what is normalised and activated."""

    def __init__(self, din, dout, hidden, *, stride, groups, parts):
        c, self.act = parts.config, parts.act
        self.norm1, self.norm2, self.norm3 = parts.norm(din), parts.norm(hidden), parts.norm(hidden)
        self.conv1, self.conv3 = parts.pointwise(din, hidden), parts.pointwise(hidden, dout)
        self.conv2 = parts.conv(hidden, hidden, 3, stride=stride, groups=groups)
        self.se = parts.squeeze(din, hidden)
        averages = c.shortcut == "avg"
        shortcut = functools.partial(Average, parts=parts) if averages else functools.partial(parts.conv, kernel_size=1)
        self.downsample = shortcut(din, dout, stride=stride) if stride > 1 or din != dout else None

    def __call__(self, x, train=None):
        x = self.act(normalise(self.norm1, x, train))
        y = self.conv2(self.act(normalise(self.norm2, self.conv1(x), train)))
        y = self.conv3(self.act(normalise(self.norm3, self.se(y) if self.se else y, train)))
        y = drop_path(y, train) + (self.downsample(x) if self.downsample else x)
        return tap(self, "output", constrain_batch(y))


class Average(nnx.Module):
    """A mean of two by two, what is left over at the edges too, and a 1x1 convolution: [B, H, W, din] -> half of it."""

    def __init__(self, din, dout, *, stride, parts):
        self.stride, self.proj = stride, parts.pointwise(din, dout)

    def __call__(self, x):
        return self.proj(avg_pool(x, 2, stride=self.stride, ceil_mode=True))


class RegNet(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {
        "timm": (
            (r"^stages\.(\d+)\.(\d+)\.", lambda match: f"s{int(match[1]) + 1}.b{int(match[2]) + 1}."),
            (r"\.downsample\.proj\.", ".downsample.1."),
        ),
    }

    def __init__(self, config):
        c = self.config = config
        parts, dim = Parts(c), c.stem_dim
        stem = parts.conv if c.pre_norm else functools.partial(parts.conv_norm, act=parts.act)
        self.stem = stem(c.in_chans, dim, 3, stride=2)
        info, stages, rows = [FeatureInfo("stem", dim, 2)], [], c.stages
        kind = PreNormBottleneck if c.pre_norm else Bottleneck
        for i, rates in enumerate(linear_rates(c.drop_path_rate, [depth for _, depth, *_ in rows])):
            dout, _, hidden, groups = rows[i]

            def block(index, din=dim, dout=dout, hidden=hidden, groups=groups):
                how = dict(stride=1 if index else 2, groups=groups, parts=parts)
                return kind(dout if index else din, dout, hidden, **how)

            stages.append(Stack(block, rates, remat=c.remat))
            info.append(FeatureInfo(f"stages.{i}", dout, 4 * 2**i))
            dim = dout
        self.stages, self.feature_info = nnx.List(stages), tuple(info)
        self.final_conv = parts.conv_norm(dim, c.head_dim, act=parts.act) if c.head_dim else None
        self.final_act = parts.act if (c.linear or c.pre_norm) and not c.head_dim else None
        classifier = functools.partial(Linear, init=Normal(0.01))
        self.head = PooledHead(
            c.head_dim or dim, c.num_classes, drop=c.drop_rate, classifier=classifier, dtype=c.dtype
        )  # fmt: skip

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead: the stem's at half the image's size, and each stage's.
        """
        x = self.stem(images) if self.config.pre_norm else self.stem(images, train)
        maps = [x, *self.run_stages(x, train)]
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        x = self.final_conv(maps[-1], train) if self.final_conv else maps[-1]
        return self.final_act(x) if self.final_act else x

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        return self.head(x, train)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each block, the head."""
        return block_groups(r"^stem\.", numbered("stages", self.stages))


_SWAG, _SEER = dict(licence="cc-by-nc-4.0"), dict(licence="seer-license")
_TAGS = {
    "pycls_in1k": dict(crop_pct=0.875, licence="mit"),
    "tv2_in1k": dict(crop_pct=0.965, licence="bsd-3-clause"),
    "sw_in12k": dict(num_classes=11_821),
    "swag_ft_in1k": dict(_SWAG, img_size=384, crop_pct=1.0),
    "swag_lc_in1k": dict(_SWAG, crop_pct=0.965),
    "seer_ft_in1k": dict(_SEER, img_size=384, crop_pct=1.0),
    "seer": dict(_SEER, crop_pct=0.965, num_classes=0),
}


def _regnet(name, params, gmacs, tags, *numbers, **fields):
    """Registers a model; `tags` in one string, the default first, whose image size is the model's."""
    own = {tag: {"crop_pct": 0.95, "img_size": 224, **_TAGS.get(tag, {})} for tag in tags.split()}
    if name[0] == "z" and own:
        own = {tag: {"img_size": 256} for tag in own}
    img_size = next(iter(own.values()))["img_size"] if own else 224
    keys = ("depth", "initial_width", "slope", "multiplier", "group_width")
    shared = dict(zip(keys, numbers, strict=True), img_size=img_size, se_ratio=0.0 if name[0] == "x" else 0.25)
    register(
        f"regnet{name}", RegNet, RegNetConfig(**shared, **fields), params=params, gmacs=gmacs,
        paper="2103.06877" if name[0] == "z" else "2003.13678", licence="apache-2.0", tags=own or ("",),
        crop_pct=1.0 if name[0] == "z" else 0.95,
    )  # fmt: skip


# multiply-adds: the names tell the paper's; at other sizes, and of what is not in it, timm's
_regnet("x_002", 2_684_792, 0.2, "pycls_in1k", 13, 24, 36.44, 2.49, 8)
_regnet("x_004", 5_157_512, 0.4, "pycls_in1k", 22, 24, 24.48, 2.54, 16)
_regnet("x_004_tv", 5_495_976, 0.42, "tv2_in1k", 22, 24, 24.48, 2.54, 16, group_share=0.9)
_regnet("x_006", 6_196_040, 0.6, "pycls_in1k", 16, 48, 36.97, 2.24, 24)
_regnet("x_008", 7_259_656, 0.8, "tv2_in1k pycls_in1k", 16, 56, 35.73, 2.28, 16)
_regnet("x_016", 9_190_136, 1.6, "tv2_in1k pycls_in1k", 18, 80, 34.01, 2.25, 24)
_regnet("x_032", 15_296_552, 3.2, "tv2_in1k pycls_in1k", 25, 88, 26.31, 2.25, 48)
_regnet("x_040", 22_118_248, 4.0, "pycls_in1k", 23, 96, 38.65, 2.43, 40)
_regnet("x_064", 26_209_256, 6.4, "pycls_in1k", 17, 184, 60.83, 2.07, 56)
_regnet("x_080", 39_572_648, 8.0, "tv2_in1k pycls_in1k", 23, 80, 49.56, 2.88, 120)
_regnet("x_120", 46_106_056, 12.0, "pycls_in1k", 19, 168, 73.36, 2.37, 112)
_regnet("x_160", 54_278_536, 16.0, "tv2_in1k pycls_in1k", 22, 216, 55.59, 2.1, 128)
_regnet("x_320", 107_811_560, 32.0, "tv2_in1k pycls_in1k", 23, 320, 69.86, 2.0, 168)

_160 = "sw_in12k_ft_in1k deit_in1k lion_in12k_ft_in1k pycls_in1k sw_in12k swag_ft_in1k swag_lc_in1k tv2_in1k"
_regnet("y_002", 3_162_996, 0.2, "pycls_in1k", 13, 24, 36.44, 2.49, 8)
_regnet("y_004", 4_344_144, 0.4, "tv2_in1k pycls_in1k", 16, 48, 27.89, 2.09, 8)
_regnet("y_006", 6_055_160, 0.6, "pycls_in1k", 15, 48, 32.54, 2.32, 16)
_regnet("y_008", 6_263_168, 0.8, "pycls_in1k", 14, 56, 38.84, 2.4, 16)
_regnet("y_008_tv", 6_432_512, 0.84, "tv2_in1k", 14, 56, 38.84, 2.4, 16, group_share=0.9)
_regnet("y_016", 11_202_430, 1.6, "tv2_in1k pycls_in1k", 27, 48, 20.71, 2.65, 24)
_regnet("y_032", 19_436_338, 3.2, "ra_in1k pycls_in1k tv2_in1k", 21, 80, 42.63, 2.66, 24)
_regnet("y_040", 20_646_656, 4.0, "ra3_in1k pycls_in1k", 22, 96, 31.41, 2.24, 64)
_regnet("y_064", 30_583_252, 6.4, "ra3_in1k pycls_in1k", 25, 112, 33.22, 2.27, 72)
_regnet("y_080", 39_180_068, 8.0, "ra3_in1k pycls_in1k", 17, 192, 76.82, 2.19, 56)
_regnet("y_080_tv", 39_381_472, 8.51, "tv2_in1k", 17, 192, 76.82, 2.19, 56, group_share=0.9)
_regnet("y_120", 51_822_544, 12.0, "sw_in12k_ft_in1k pycls_in1k sw_in12k", 19, 168, 73.36, 2.37, 112)
_regnet("y_160", 83_590_140, 16.0, _160, 18, 200, 106.23, 2.48, 112)
_regnet(
    "y_320",
    145_046_770,
    32.0,
    "tv2_in1k pycls_in1k seer seer_ft_in1k swag_ft_in1k swag_lc_in1k",
    20,
    232,
    115.89,
    2.53,
    232,
)
_regnet("y_640", 281_378_786, 188.47, "seer_ft_in1k seer", 20, 352, 147.48, 2.4, 328)
_regnet("y_1280", 644_812_894, 374.99, "swag_ft_in1k seer seer_ft_in1k swag_lc_in1k", 27, 456, 160.83, 2.52, 264)
_regnet("y_2560", 1_282_601_138, 747.83, "seer_ft_in1k", 27, 640, 230.83, 2.53, 373)
_regnet("y_040_sgn", 20_646_656, 4.0, "", 22, 96, 31.41, 2.24, 64, act="silu", norm_width=16)

_V = dict(pre_norm=True, act="silu")
_regnet("v_040", 20_640_640, 4.0, "ra3_in1k", 22, 96, 31.41, 2.24, 64, **_V)
_regnet("v_064", 30_576_052, 6.4, "ra3_in1k", 25, 112, 33.22, 2.27, 72, shortcut="avg", **_V)

_Z = dict(ratio=4.0, shortcut=None, linear=True, zero_init_last=False, act="silu")
_regnet("z_005", 7_122_742, 0.5, "", 21, 16, 10.7, 2.51, 4, head_dim=1024, **_Z)
_regnet("z_040", 27_116_800, 4.0, "ra3_in1k", 28, 48, 14.5, 2.226, 8, **_Z)
_regnet("z_040_h", 28_938_880, 4.0, "ra3_in1k", 28, 48, 14.5, 2.226, 8, head_dim=1536, **_Z)
