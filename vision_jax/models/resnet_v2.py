"""ResNetV2: Identity Mappings in Deep Residual Networks (He et al., 2016, arXiv:1603.05027).

Norm and activation come before the convolutions, so that nothing stands in the way from one block's sum to the next.
With it comes Big Transfer (BiT: Kolesnikov et al., 2020, arXiv:1912.11370), which trains wide ones on millions of
images, with standardised filters (arXiv:1903.10520) and group norms in place of batch norms. Official repositories:
KaimingHe/resnet-1k-layers, google-research/big_transfer; compared here with timm's. As there a bottleneck strides in
its 3x3 convolution.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm, normalise
from vision_jax.layers.norm_act import EvoNorm, FilterResponseNorm
from vision_jax.layers.pooling import avg_pool, max_pool
from vision_jax.layers.stack import Stack
from vision_jax.layers.standardized_conv import StandardizedConv
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, Stage, stage_groups
from vision_jax.parameters import Normal, kaiming_normal
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register

NORMS = ("batch", "group", "evo", "frn")


@dataclasses.dataclass(frozen=True)
class ResNetV2Config(ModelConfig):
    """A pre-activation ResNet; a number a stage for `depths` and `embed_dims`, the channels that blocks give.

    `block`: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1; inside a quarter of the channels). `deep_stem`: channels
    of the two 3x3 convolutions before a third to `stem_dim`, or () for one 7x7. `avg_down`: shortcuts stride by
    pooling. `norm`: one of `NORMS`, two of which are activations too; `norm_groups` of "group" and "evo".
    `standard_epsilon`: of standardised filters; None leaves filters as they are. `zero_pool`: the stem's pool takes
    what lies beyond the map for zeros, as in BiT.
    """

    block: str = "bottleneck"
    depths: tuple = (3, 4, 6, 3)
    embed_dims: tuple = (256, 512, 1024, 2048)
    stem_dim: int = 64
    deep_stem: tuple = ()
    avg_down: bool = False
    norm: str = "batch"
    norm_groups: int = 32
    standard_epsilon: float | None = None
    zero_pool: bool = False

    def __post_init__(self):
        check(self.block in ("basic", "bottleneck"), f"block={self.block!r}: one of 'basic', 'bottleneck'")
        check(self.norm in NORMS, f"norm={self.norm!r}: one of {NORMS}")
        same = len(self.depths) == len(self.embed_dims)
        check(same, f"depths={self.depths} and embed_dims={self.embed_dims} differ in length")
        check(len(self.deep_stem) in (0, 2), f"deep_stem={self.deep_stem}: channels of two convolutions, or ()")


def _conv(c, din, dout, kernel_size, stride=1):
    kw = dict(stride=stride, bias=False, init=kaiming_normal, dtype=c.dtype)
    if c.standard_epsilon is None:
        return Conv(din, dout, kernel_size, **kw)
    return StandardizedConv(din, dout, kernel_size, standard_epsilon=c.standard_epsilon, **kw)


def _norm(c, dim):
    fits = c.norm not in ("group", "evo") or dim % c.norm_groups == 0
    check(fits, f"norm_groups={c.norm_groups} does not divide {dim} channels")
    kinds = {
        "batch": BatchNorm,
        "group": functools.partial(GroupNorm, groups=c.norm_groups),
        "evo": functools.partial(EvoNorm, groups=c.norm_groups),
        "frn": FilterResponseNorm,
    }
    return kinds[c.norm](dim, dtype=c.dtype)


def _activated(norm, x, train):
    """Norm and activation."""
    x = normalise(norm, x, train)
    return x if isinstance(norm, EvoNorm | FilterResponseNorm) else jax.nn.relu(x)


class Shortcut(nnx.Module):
    """A projection, strided or after a pool: [B, H, W, din] -> [B, H/stride, W/stride, dout]."""

    def __init__(self, c, din, dout, stride):
        self.pool = stride if c.avg_down else 1
        self.conv = _conv(c, din, dout, 1, stride // self.pool)

    def __call__(self, x):
        return self.conv(avg_pool(x, 2, stride=2, ceil_mode=True) if self.pool > 1 else x)


class PreActivation(nnx.Module):
    """Norms and convolutions in turn, beside a shortcut: [B, H, W, din] -> [B, H/stride, W/stride, dout].

    Args:
      c: the network's configuration.
      din, dout: channels in and out.
      stride: of the 3x3 convolution, the first where there are two.
      first: whether it is a stage's first; a first bottleneck always projects its shortcut.
    """

    def __init__(self, c, din, dout, *, stride, first):
        basic, inner = c.block == "basic", dout if c.block == "basic" else dout // 4
        project = first and (not basic or stride > 1 or din != dout)
        self.downsample = Shortcut(c, din, dout, stride) if project else None
        sizes, widths, strides = ((3, 3), (din, inner, dout), (stride, 1))
        if not basic:
            sizes, widths, strides = ((1, 3, 1), (din, inner, inner, dout), (1, stride, 1))
        self.layers = len(sizes)
        for i in range(self.layers):
            setattr(self, f"norm{i + 1}", _norm(c, widths[i]))
            setattr(self, f"conv{i + 1}", _conv(c, widths[i], widths[i + 1], sizes[i], strides[i]))

    def __call__(self, x, train=None):
        shortcut = x
        for i in range(1, self.layers + 1):
            x = _activated(getattr(self, f"norm{i}"), x, train)
            if i == 1 and self.downsample:
                shortcut = self.downsample(x)
            x = getattr(self, f"conv{i}")(x)
        return tap(self, "output", constrain_batch(shortcut + drop_path(x, train)))


class Stem(nnx.Module):
    """One 7x7 convolution, or three 3x3 with norms between them: images [B, H, W, C] -> [B, H/2, W/2, stem_dim]."""

    def __init__(self, c):
        self.deep = bool(c.deep_stem)
        if not self.deep:
            self.conv = _conv(c, c.in_chans, c.stem_dim, 7, 2)
            return
        widths = (c.in_chans, *c.deep_stem, c.stem_dim)
        for i in range(3):
            setattr(self, f"conv{i + 1}", _conv(c, widths[i], widths[i + 1], 3, 1 if i else 2))
        self.norm1, self.norm2 = _norm(c, widths[1]), _norm(c, widths[2])

    def __call__(self, x, train=None):
        if not self.deep:
            return self.conv(x)
        x = _activated(self.norm1, self.conv1(x), train)
        return self.conv3(_activated(self.norm2, self.conv2(x), train))


class ResNetV2(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)

    def __init__(self, config):
        c = self.config = config
        self.stem = Stem(c)
        stages, info, din = [], [FeatureInfo("stem", c.stem_dim, 2)], c.stem_dim
        for i, (dout, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):

            def block(index, din=din, dout=dout, stride=2 if i else 1):
                width = dout if index else din
                return PreActivation(c, width, dout, stride=1 if index else stride, first=index == 0)

            stages.append(Stage(None, Stack(block, rates, remat=c.remat)))
            info.append(FeatureInfo(f"stages.{i}", dout, 4 * 2**i))
            din = dout
        self.stages, self.norm = nnx.List(stages), _norm(c, din)
        classifier = functools.partial(PointwiseConv, init=Normal(0.01))
        self.head = PooledHead(din, c.num_classes, drop=c.drop_rate, classifier=classifier, dtype=c.dtype)
        self.feature_info = tuple(info)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead, not normalised: the stem's before its pooling, and each
        stage's.
        """
        x = self.stem(images, train)
        if self.config.zero_pool:
            pooled = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, stride=2)
        else:
            pooled = max_pool(x, 3, stride=2, padding=1)
        maps = [x, *self.run_stages(pooled, train)]
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        return _activated(self.norm, maps[-1], train)

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        return self.head(x, train)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^stem\.")


_BASIC = dict(block="basic", embed_dims=(64, 128, 256, 512))
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_D = dict(deep_stem=(32, 32), avg_down=True)


def _register(name, layers, params, gmacs, tags, *, paper="1603.05027", told=None, **fields):
    shape = dict(depths=_DEPTHS[layers]) | (_BASIC if layers < 50 else {})
    register(
        f"resnetv2_{name}", ResNetV2, ResNetV2Config(**shape, **fields), params=params, gmacs=gmacs, paper=paper,
        licence="apache-2.0", tags=tags, mean=INCEPTION_MEAN, std=INCEPTION_STD, **(told or {}),
    )  # fmt: skip


_RA4 = {"ra4_e3600_r224_in1k": dict(crop_pct=0.9)}
_RA4_384 = _RA4 | {"ra4_e3600_r384_in1k": dict(img_size=384, crop_pct=1.0)}
_A1H, _AH = ({f"{tag}_in1k": dict(crop_pct=0.95)} for tag in ("a1h", "ah"))
_register("18", 18, 11_687_720, 1.82, _RA4)
_register("18d", 18, 11_706_952, 2.06, _RA4, **_D)
_register("34", 34, 21_795_880, 3.67, _RA4)
_register("34d", 34, 21_815_112, 3.91, _RA4_384, **_D)
_register("50", 50, 25_549_352, 4.11, _A1H)
_register("50d", 50, 25_568_584, 4.35, ("",), **_D)
_register("50t", 50, 25_566_048, 4.32, ("",), deep_stem=(24, 32), avg_down=True)
_register("101", 101, 44_541_480, 7.83, _A1H)
_register("101d", 101, 44_560_712, 8.07, ("",), **_D)
_register("152", 152, 60_185_128, 11.55, ("",))
_register("152d", 152, 60_204_360, 11.80, ("",), **_D)
_register("50d_gn", 50, 25_568_584, 4.38, _AH, norm="group", **_D)
_register("50d_evos", 50, 25_591_368, 4.33, _AH, norm="evo", **_D)
_register("50d_frn", 50, 25_591_368, 4.33, ("",), norm="frn", **_D)


def _bit(name, layers, width, params, gmacs, img_size, others=None, **fields):
    """A Big Transfer network; `others`: published weights before those of the paper."""
    tags = (others or {}) | {
        "goog_in21k_ft_in1k": dict(img_size=480 if width == 4 else 448, crop_pct=1.0),
        "goog_in21k": dict(img_size=224, num_classes=21843),
    }
    _register(
        name, layers, params, gmacs, tags, paper="1912.11370", told=dict(interpolation="bilinear"), img_size=img_size,
        stem_dim=64 * width, embed_dims=tuple(dim * width for dim in (256, 512, 1024, 2048)), norm="group",
        standard_epsilon=1e-8, zero_pool=True, **fields,
    )  # fmt: skip


_PATIENT = dict(img_size=224, interpolation="bicubic")  # teachers and pupils of arXiv:2106.05237
_TEACHERS = {
    "goog_teacher_in21k_ft_in1k": _PATIENT,
    "goog_teacher_in21k_ft_in1k_384": dict(_PATIENT, img_size=384, crop_pct=1.0),
}
_bit("50x1_bit", 50, 1, 25_549_352, 4.23, 224, {"goog_distilled_in1k": _PATIENT})
_bit("50x3_bit", 50, 3, 217_319_080, 145.7, 448)
_bit("101x1_bit", 101, 1, 44_541_480, 31.65, 448)
_bit("101x3_bit", 101, 3, 387_934_888, 280.33, 448)
_bit("152x2_bit", 152, 2, 236_335_208, 46.95, 224, _TEACHERS)
_bit("152x4_bit", 152, 4, 936_533_224, 844.84, 480)
