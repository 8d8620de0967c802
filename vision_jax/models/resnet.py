"""ResNet: Deep Residual Learning for Image Recognition (He et al., 2016, arXiv:1512.03385).

Layers learn a residual beside an identity shortcut. With it come ResNet-C, -D, -S and -T, whose stem is three 3x3
convolutions and whose shortcuts (D, T) pool before they project (Bag of Tricks: He et al., 2018, arXiv:1812.01187);
Wide ResNet, with wider bottlenecks (Zagoruyko & Komodakis, 2016, arXiv:1605.07146); and ResNeXt, with grouped ones (Xie
et al., 2017, arXiv:1611.05431). Official repositories: KaimingHe/deep-residual-networks, facebookresearch/ResNeXt;
compared here with timm's. As in the released torch and timm weights, a bottleneck strides in its 3x3 convolution
("v1.5"), where the paper strides in the first 1x1. The networks with Batch-Channel Normalization and standardised
filters (Qiao et al., 2019, arXiv:1911.09738) are compared with joe-siyuan-qiao/Batch-Channel-Normalization.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.batch_channel_norm import BatchChannelNorm
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import avg_pool, max_pool
from vision_jax.layers.stack import Stack
from vision_jax.layers.standardized_conv import StandardizedConv
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, stage_groups
from vision_jax.parameters import kaiming_normal, ones, torch_default, zeros
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register

NORMS = ("batch", "batch_channel", "estimated")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ModelConfig):
    """A ResNet.

    `block`: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 to four times the channels). `deep_stem`: channels of the
    two 3x3 convolutions before a third to `stem_dim`, or () for one 7x7. `avg_down`: shortcuts stride by pooling.
    `cardinality` and `base_width`: groups of a bottleneck's 3x3 convolution, and the channels of each where embed_dims
    is 64 (ResNeXt's C and d). `norm`: "batch"; or "batch_channel", with standardised filters, and "estimated", the same
    for batches too small to have statistics of their own: see `layers.batch_channel_norm`, which has `norm_groups`.
    """

    block: str = "basic"
    depths: tuple = (2, 2, 2, 2)
    stem_dim: int = 64
    deep_stem: tuple = ()
    embed_dims: tuple = (64, 128, 256, 512)
    avg_down: bool = False
    cardinality: int = 1
    base_width: int = 64
    zero_init_last: bool = True
    norm: str = "batch"
    norm_groups: int = 32

    def __post_init__(self):
        check(self.norm in NORMS, f"norm={self.norm!r}: one of {NORMS}")
        check(self.block in ("basic", "bottleneck"), f"block={self.block!r}: one of 'basic', 'bottleneck'")
        check(
            len(self.depths) == len(self.embed_dims),
            f"depths={self.depths} and embed_dims={self.embed_dims} differ in length",
        )
        check(len(self.deep_stem) in (0, 2), f"deep_stem={self.deep_stem}: channels of two convolutions, or ()")
        check(
            self.block == "bottleneck" or (self.cardinality, self.base_width) == (1, 64),
            f"cardinality={self.cardinality} and base_width={self.base_width} are for block='bottleneck'",
        )


class Residual(nnx.Module):
    """Convolutions, each with batch norm, beside a shortcut: [B, H, W, Cin] -> [B, H/stride, W/stride, Cout].

    Args:
      c: the network's configuration.
      din, dout: channels in and out.
      layers: (kernel size, channels out, stride, groups) of each convolution.
    """

    def __init__(self, c, din, dout, layers):
        self.layers = len(layers)
        stride, width = 1, din
        for i, (kernel_size, channels, step, groups) in enumerate(layers, 1):
            last = c.zero_init_last and i == len(layers)
            setattr(self, f"conv{i}", _conv(c, width, channels, kernel_size, step, groups))
            setattr(self, f"bn{i}", _norm(c, channels, zeros if last else ones))
            stride, width = stride * step, channels
        shortcut = []
        if stride > 1 or din != dout:
            pool = [_halve if stride > 1 else _keep] if c.avg_down else []
            shortcut = [*pool, _conv(c, din, dout, 1, 1 if c.avg_down else stride), _norm(c, dout)]
        self.downsample = nnx.List(shortcut)

    def __call__(self, x, train=None):
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y), train)
            y = jax.nn.relu(y) if i < self.layers else y
        x = _sequence(self.downsample, x, train)
        return tap(self, "output", constrain_batch(jax.nn.relu(x + drop_path(y, train))))


def _conv(c, din, dout, kernel_size, stride, groups=1):
    # the references' fan is that of all output channels, also where they are grouped
    init = dataclasses.replace(kaiming_normal, scale=kaiming_normal.scale / groups)
    how = dict(stride=stride, groups=groups, bias=False, init=init, dtype=c.dtype)
    if c.norm == "batch":
        return Conv(din, dout, kernel_size, **how)
    return StandardizedConv(din, dout, kernel_size, standard_epsilon=1e-5, unbiased=True, **how)


def _norm(c, dim, scale_init=ones):
    if c.norm == "batch":
        return BatchNorm(dim, scale_init=scale_init, dtype=c.dtype)
    check(dim % c.norm_groups == 0, f"norm_groups={c.norm_groups} does not divide {dim} channels")
    estimated = c.norm == "estimated"
    return BatchChannelNorm(dim, c.norm_groups, estimated=estimated, scale_init=scale_init, dtype=c.dtype)


def _halve(x):
    return avg_pool(x, 2, stride=2, ceil_mode=True)


def _keep(x):
    return x


def _sequence(layers, x, train):
    """Runs layers and functions one after the other; their places in the list are their names in weight files."""
    for layer in layers:
        x = layer(x, train) if isinstance(layer, BatchNorm | BatchChannelNorm) else layer(x)
    return x


class ResNet(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("fc",)
    # torchvision's names are the same
    torch_names: ClassVar = {"timm": tuple((rf"^stages\.{i}\.", f"layer{i + 1}.") for i in range(4))}

    def __init__(self, config):
        c = self.config = config
        self.conv1 = self._deep_stem(c) if c.deep_stem else _conv(c, c.in_chans, c.stem_dim, 7, 2)
        self.bn1 = _norm(c, c.stem_dim)
        stages, info, din = [], [FeatureInfo("act1", c.stem_dim, 2)], c.stem_dim
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            dout, stride = dim * (4 if c.block == "bottleneck" else 1), 2 if i else 1

            def block(index, din=din, dim=dim, dout=dout, stride=stride):
                step = 1 if index else stride
                width = dim * c.base_width // 64 * c.cardinality
                basic = ((3, dim, step, 1), (3, dim, 1, 1))
                bottleneck = ((1, width, 1, 1), (3, width, step, c.cardinality), (1, dout, 1, 1))
                return Residual(c, dout if index else din, dout, basic if c.block == "basic" else bottleneck)

            stages.append(Stack(block, rates, remat=c.remat))
            info.append(FeatureInfo(f"layer{i + 1}", dout, 4 * 2**i))
            din = dout
        self.stages = nnx.List(stages)
        head = functools.partial(Linear, init=torch_default, bias_init=torch_default, dtype=c.dtype)
        self.fc = head(din, c.num_classes) if c.num_classes else None
        self.feature_info = tuple(info)

    @staticmethod
    def _deep_stem(c):
        layers, din = [], c.in_chans
        for dim in c.deep_stem:
            stride = 1 if layers else 2
            layers += [_conv(c, din, dim, 3, stride), _norm(c, dim), jax.nn.relu]
            din = dim
        return nnx.List([*layers, _conv(c, din, c.stem_dim, 3, 1)])

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead: after the stem, before its pooling, and after each stage.
        """
        x = _sequence(self.conv1, images, train) if self.config.deep_stem else self.conv1(images)
        x = jax.nn.relu(self.bn1(x, train))
        maps = [x, *self.run_stages(max_pool(x, 3, stride=2, padding=1), train)]
        return [maps[i] for i in self.indices(out_indices)] if pyramid else maps[-1]

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.fc(x) if self.fc else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^(conv1|bn1)")


_RSB = dict(crop_pct=0.95)  # ResNet strikes back (Wightman et al., 2021, arXiv:2110.00476)
_TORCH = dict(interpolation="bilinear", licence="bsd-3-clause")
_FACEBOOK = dict(interpolation="bilinear", licence="cc-by-nc-4.0")
_TAGS = {  # published weights -> how their preprocessing differs from `Pretrained`'s defaults
    **{tag: {} for tag in ("ra", "ra2", "ram", "racm", "am", "bt", "c3", "gluon")},
    **dict.fromkeys(("a1", "a1h", "a2", "b1k", "b2k", "c1", "c2", "d"), _RSB),
    "a3": _RSB | dict(img_size=160),
    "ra4_e3600_r224": dict(mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.9),
    "tv": _TORCH,
    "tv2": _TORCH | dict(img_size=176),
    **dict.fromkeys(("fb_ssl_yfcc100m_ft", "fb_swsl_ig1b_ft", "fb_wsl_ig1b_ft"), _FACEBOOK),
}
_BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {
    14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
}  # fmt: skip
_C, _S = dict(deep_stem=(32, 32)), dict(deep_stem=(64, 64), stem_dim=128)
_D, _T = dict(_C, avg_down=True), dict(deep_stem=(24, 32), avg_down=True)


def _resnet(name, layers, params, gmacs, tags, *, paper="1512.03385", own=(), **fields):
    """Registers a variant. `tags`: its published weights, without their "_in1k"; `own`: (tag, what differs further)."""
    block, depths = ("basic", _BASIC[layers]) if layers in _BASIC else ("bottleneck", _BOTTLENECK[layers])
    known = {f"{tag}_in1k": dict(licence="apache-2.0") | _TAGS[tag] for tag in tags.split()}
    for tag, differences in own:
        known[tag] = known.get(tag, {}) | differences
    register(
        name, ResNet, ResNetConfig(block=block, depths=depths, **fields), params=params, gmacs=gmacs, paper=paper,
        licence=next(iter(known.values()))["licence"] if known else "", tags=known or ("",),
    )  # fmt: skip


_FB = "fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft"
_resnet("resnet18", 18, 11_689_512, 1.82, f"a1 a2 a3 tv gluon {_FB}")
_resnet("resnet26", 26, 15_995_176, 2.36, "bt")
_resnet("resnet34", 34, 21_797_672, 3.67, "a1 a2 a3 bt ra4_e3600_r224 tv gluon")
_resnet(
    "resnet50", 50, 25_557_032, 4.11, f"a1 a1h a2 a3 b1k b2k c1 c2 d ram am ra bt tv tv2 gluon {_FB}",
    own=(
        ("a1h_in1k", dict(img_size=176, crop_pct=0.9)),
        ("bamboo", dict(num_classes=0, crop_pct=1.0, licence="")),  # a backbone alone
    ),
)  # fmt: skip
_resnet("resnet101", 101, 44_549_160, 7.83, "a1h a1 a2 a3 tv tv2 gluon")
_resnet("resnet152", 152, 60_192_808, 11.56, "a1h a1 a2 a3 tv tv2 gluon")
_resnet("resnet200", 200, 64_673_832, 15.07, "")

_TRICKS = dict(paper="1812.01187")
_resnet("resnet50c", 50, 25_576_264, 4.35, "gluon", **_TRICKS, **_C)
_resnet("resnet101c", 101, 44_568_392, 8.08, "gluon", **_TRICKS, **_C)
_resnet("resnet152c", 152, 60_212_040, 11.80, "gluon", **_TRICKS, **_C)
_resnet("resnet50s", 50, 25_680_808, 5.47, "gluon", **_TRICKS, **_S)
_resnet("resnet101s", 101, 44_672_936, 9.19, "gluon", **_TRICKS, **_S)
_resnet("resnet152s", 152, 60_316_584, 12.92, "gluon", **_TRICKS, **_S)
_resnet("resnet18d", 18, 11_708_744, 2.06, "ra2 ra4_e3600_r224", **_TRICKS, **_D)
_resnet("resnet26d", 26, 16_014_408, 2.60, "bt", **_TRICKS, **_D)
_resnet("resnet34d", 34, 21_816_904, 3.91, "ra2", **_TRICKS, **_D)
_resnet(
    "resnet50d", 50, 25_576_264, 4.35, "ra2 ra4_e3600_r224 a1 a2 a3 gluon",
    own=(("ra4_e3600_r224_in1k", dict(crop_pct=0.95)),), **_TRICKS, **_D,
)  # fmt: skip
_AT_256 = dict(img_size=256, own=(("ra2_in1k", dict(crop_pct=0.95)), ("gluon_in1k", dict(img_size=224))))
_resnet("resnet101d", 101, 44_568_392, 10.55, "ra2 gluon", **_AT_256, **_TRICKS, **_D)
_resnet("resnet152d", 152, 60_212_040, 15.41, "ra2 gluon", **_AT_256, **_TRICKS, **_D)
_resnet(
    "resnet200d", 200, 64_693_064, 20.00, "ra2", img_size=256, own=(("ra2_in1k", dict(crop_pct=0.95)),), **_TRICKS, **_D
)
_resnet("resnet10t", 10, 5_435_488, 0.70, "c3", img_size=176, **_TRICKS, **_T)
_resnet("resnet14t", 14, 10_081_632, 1.07, "c3", img_size=176, **_TRICKS, **_T)
_resnet(
    "resnet26t", 26, 16_011_872, 3.35, "ra2", img_size=256, own=(("ra2_in1k", dict(crop_pct=0.94)),), **_TRICKS, **_T
)
_resnet("resnet50t", 50, 25_573_728, 4.32, "", **_TRICKS, **_T)

_WIDE = dict(paper="1605.07146", base_width=128)
_resnet("wide_resnet50_2", 50, 68_883_240, 11.43, "racm tv tv2", **_WIDE)
_resnet("wide_resnet101_2", 101, 126_886_696, 22.80, "tv tv2", **_WIDE)


def _resnext(name, layers, cardinality, base_width, params, gmacs, tags, **fields):
    _resnet(
        name, layers, params, gmacs, tags, paper="1611.05431", cardinality=cardinality, base_width=base_width, **fields
    )


_resnext("resnext50_32x4d", 50, 32, 4, 25_028_904, 4.26, f"a1h a1 a2 a3 ra tv tv2 gluon {_FB}")
_resnext("resnext50d_32x4d", 50, 32, 4, 25_048_136, 4.50, "bt", **_D)
_resnext("resnext101_32x4d", 101, 32, 4, 44_177_704, 8.01, f"{_FB} gluon")
_resnext("resnext101_64x4d", 101, 64, 4, 83_455_272, 15.52, "c1 tv gluon")
_resnext("resnext101_32x8d", 101, 32, 8, 88_791_336, 16.48, f"tv tv2 fb_wsl_ig1b_ft {_FB}")
_resnext("resnext101_32x16d", 101, 32, 16, 194_026_792, 36.27, f"fb_wsl_ig1b_ft {_FB}")
_resnext("resnext101_32x32d", 101, 32, 32, 468_530_472, 87.29, "fb_wsl_ig1b_ft")


def _bcn(name, layers, file, params, gmacs, **fields):
    register(
        f"{name}_bcn_ws", ResNet,
        ResNetConfig(block="bottleneck", depths=_BOTTLENECK[layers], norm="batch_channel", **fields),
        params=params, gmacs=gmacs, paper="1911.09738", reference="joe-siyuan-qiao/Batch-Channel-Normalization",
        licence="mit", interpolation="bilinear", hub="",
        tags={"in1k": dict(url=f"https://cs.jhu.edu/~syqiao/BatchChannelNormalization/{file}_bcn_ws.pth")},
    )  # fmt: skip


_bcn("resnet50", 50, "rn50", 25_560_424, 4.11)
_bcn("resnet101", 101, "rn101", 44_555_816, 7.83)
_bcn("resnext50_32x4d", 50, "rx50", 25_032_296, 4.26, cardinality=32, base_width=4)
