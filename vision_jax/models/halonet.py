"""HaloNet, BoTNet and LambdaResNet: residual networks whose 3x3 convolutions are, in places, self-attention.

HaloNet (Vaswani et al., 2021, arXiv:2103.12731) attends in blocks with a halo around them, in place of every spatial
convolution; BoTNet (Srinivas et al., 2021, arXiv:2101.11605) attends to the whole of the last, small maps;
LambdaNetworks (Bello, 2021, arXiv:2102.08602) turn what surrounds a position into a linear function of its query. Their
authors released no such networks. The reference is timm's: HaloNet-H1 by the paper, the others mixtures of the three
with ResNet-T, RegNetZ, squeeze-and-excitation, ECA and BAT that were trained there.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
from flax import nnx

from vision_jax.layers.bilinear_attention import BilinearAttention
from vision_jax.layers.bottleneck import Bottleneck
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv import pair
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.efficient_channel_attention import EfficientChannelAttention
from vision_jax.layers.global_attention import GlobalAttention
from vision_jax.layers.halo_attention import HaloAttention
from vision_jax.layers.head import PooledHead
from vision_jax.layers.lambda_layer import LambdaLayer
from vision_jax.layers.linear import Linear
from vision_jax.layers.pooling import max_pool
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, StagesModel
from vision_jax.parameters import Normal, kaiming_normal, zeros
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register

ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}
MIXERS = ("halo", "global", "lambda")


class Mixer(NamedTuple):
    """The self-attention of a stage.

    Attributes:
      kind: "halo", "global" or "lambda": see `layers.halo_attention`, `global_attention` and `lambda_layer`.
      num_heads: number of heads.
      key_dim: channels of a head's queries and keys; None for `key_ratio` of the block's over its heads.
      key_ratio: see there.
      window_size, halo: of "halo".
      radius: of "lambda"; None for positions in the whole map.
    """

    kind: str
    num_heads: int = 8
    key_dim: int | None = None
    key_ratio: float = 1.0
    window_size: int = 8
    halo: int = 3
    radius: int | None = 9


class Blocks(NamedTuple):
    """A stage.

    Attributes:
      dim: channels out.
      depth: number of blocks; `attend`: those with self-attention.
      mixer: what that is.
      stride: of the first block.
      ratio: channels inside a block, as a share of those that it gives (or takes, if the network is inverted).
      group_width: channels of a group of the 3x3 convolutions; 0 for no groups.
    """

    dim: int
    depth: int
    attend: tuple = ()
    mixer: Mixer | None = None
    stride: int = 2
    ratio: float = 0.25
    group_width: int = 0


@dataclasses.dataclass(frozen=True)
class HaloNetConfig(ModelConfig):
    """A residual network with self-attention.

    `stem_dims`: channels of the stem's convolutions, whose first strides; then a pool follows (`stem_pool`), or the
    last strides too, if there are several. `inner_attention`, after the 3x3 convolutions: "se" with `se_ratio`, "eca",
    or "bat" with `bat_size` blocks along an axis and the dropout `bat_drop_rate`; None for none. `inverted`: as
    RegNetZ, blocks count their width from their input, end without an activation and have no shortcut where shapes
    change. `head_dim`: channels of a last 1x1 convolution; 0 for none.
    """

    stages: tuple = ()
    stem_dims: tuple = (24, 32, 64)
    stem_kernel: int = 3
    stem_pool: bool = True
    act: str = "relu"
    inner_attention: str | None = None
    se_ratio: float = 1 / 16
    bat_size: int = 8
    bat_drop_rate: float = 0.2
    inverted: bool = False
    head_dim: int = 0

    def __post_init__(self):
        check(len(self.stages) > 0, "stages=(): at least one")
        check(self.act in ACTIVATIONS, f"act={self.act!r}: one of {tuple(ACTIVATIONS)}")
        given = self.inner_attention
        check(given in (None, "se", "eca", "bat"), f"inner_attention={given!r}: 'se', 'eca', 'bat' or None")
        for i, stage in enumerate(self.rows):
            check(all(0 <= j < stage.depth for j in stage.attend), f"stages[{i}]: attend={stage.attend} of its blocks")
            check(not stage.attend or stage.mixer, f"stages[{i}]: attend={stage.attend} without a mixer")
            if stage.mixer:
                check(stage.mixer.kind in MIXERS, f"stages[{i}]: mixer {stage.mixer.kind!r}: one of {MIXERS}")

    @property
    def rows(self):
        """`stages`, whose rows and mixers may be given as plain tuples."""
        rows = (Blocks(*row) for row in self.stages)
        return tuple(row._replace(mixer=Mixer(*row.mixer) if row.mixer else None) for row in rows)


class Stem(nnx.Module):
    """Convolutions, perhaps a pool: images [B, H, W, C] -> maps [B, H/2, W/2, C'] and [B, H/4, W/4, C'']."""

    def __init__(self, c, conv):
        self.depth, self.pool, dims = len(c.stem_dims), c.stem_pool, (c.in_chans, *c.stem_dims)
        for i in range(self.depth):
            stride = 2 if i == 0 or (i == self.depth - 1 and not c.stem_pool) else 1
            setattr(self, f"conv{i + 1}", conv(dims[i], dims[i + 1], c.stem_kernel, stride=stride))

    def __call__(self, x, train=None):
        maps = [x]
        for i in range(self.depth):
            maps.append(getattr(self, f"conv{i + 1}")(maps[-1], train))
        if self.pool:
            maps.append(max_pool(maps[-1], 3, stride=2, padding=1))
        return maps[-2:]


def _inner_attention(c, dim):
    if c.inner_attention == "se":
        squeezed = round_channels(dim * c.se_ratio, limit=0)
        return SqueezeExcite(dim, squeezed, init=kaiming_normal, bias_init=zeros, dtype=c.dtype)
    if c.inner_attention == "bat":
        return BilinearAttention(dim, c.bat_size, drop=c.bat_drop_rate, dtype=c.dtype)
    return EfficientChannelAttention(dim, dtype=c.dtype) if c.inner_attention else None


class HaloNet(StagesModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; windows must tile the maps that attend in them."""

    classifier = ("head.fc",)

    def __init__(self, config):
        c = self.config = config
        conv = functools.partial(ConvNorm, act=ACTIVATIONS[c.act], init=kaiming_normal, dtype=c.dtype)
        halves = len(c.stem_dims) == 1 and not c.stem_pool
        self.stem = conv(c.in_chans, c.stem_dims[0], c.stem_kernel, stride=2) if halves else Stem(c, conv)
        dim, reduction = c.stem_dims[-1], 2 if halves else 4
        info = [FeatureInfo("stem", dim if halves or c.stem_pool else c.stem_dims[-2], 2)]
        stages, rates = [], linear_rates(c.drop_path_rate, [row.depth for row in c.rows])
        for i, row in enumerate(c.rows):
            block = functools.partial(self._block, i, row, dim, reduction)
            stages.append(Stack(block, rates[i], remat=c.remat))
            dim, reduction = row.dim, reduction * row.stride
            info.append(FeatureInfo(f"stages.{i}", dim, reduction))
        self.stages = nnx.List(stages)
        self.final_conv = conv(dim, c.head_dim) if c.head_dim else None
        if c.head_dim:
            dim = c.head_dim
            info[-1] = FeatureInfo("final_conv", dim, reduction)
        classifier = functools.partial(Linear, init=Normal(0.01))
        self.head = PooledHead(dim, c.num_classes, drop=c.drop_rate, classifier=classifier, dtype=c.dtype)
        self.feature_info = tuple(info)

    def _block(self, i, row, dim, reduction, index):
        """Block `index` of stage i, which starts from a map of `dim` channels at a `reduction`."""
        c, stride = self.config, 1 if index else row.stride
        din, reduction = (row.dim, reduction * row.stride) if index else (dim, reduction)
        hidden, mixer, pool = round_channels((din if c.inverted else row.dim) * row.ratio), None, 1
        if index in row.attend:
            strides = row.mixer.kind == "halo" and row.mixer.window_size % stride == 0
            pool = 1 if strides else stride
            mixer = self._mixer(f"stages[{i}]", row.mixer, reduction, stride, pool, hidden)
        return Bottleneck(
            din, row.dim, hidden, stride=stride, pool=pool, groups=hidden // row.group_width if row.group_width else 1,
            act=ACTIVATIONS[c.act], attn=None if mixer else _inner_attention(c, hidden), mixer=mixer,
            inverted=c.inverted, dtype=c.dtype,
        )  # fmt: skip

    def _mixer(self, name, mixer, reduction, stride, pool, dim):
        """The self-attention of the map at a reduction, which has `dim` channels."""
        heads, c = mixer.num_heads, self.config
        check(dim % heads == 0, f"{name}: its blocks' {dim} channels are not a multiple of num_heads={heads}")
        key_dim = mixer.key_dim or round_channels(dim * mixer.key_ratio) // heads
        size = tuple(-(-side // reduction) for side in pair(c.img_size))
        tile = mixer.window_size if mixer.kind == "halo" else 1
        given = f"img_size={c.img_size} gives {name} maps of {size[0]} x {size[1]}"
        check(all(side % tile == 0 for side in size), f"{given}, not multiples of the window, {tile}")
        check(all(side % stride == 0 for side in size), f"{given}, not multiples of the stride, {stride}")
        if mixer.kind == "halo":
            how = dict(window_size=tile, halo=mixer.halo, stride=stride // pool)
            return HaloAttention(dim, heads, key_dim, **how, dtype=c.dtype)
        if mixer.kind == "lambda":
            return LambdaLayer(dim, heads, key_dim, radius=mixer.radius, size=size, dtype=c.dtype)
        return GlobalAttention(dim, heads, key_dim, size=size, dtype=c.dtype)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead: the stem's at half the image's size, and each stage's, the
        last after the last convolution. Networks with positions in whole maps take images of `img_size` alone.
        """
        mixers = [row.mixer for row in self.config.rows if row.attend]
        if any(m.kind == "global" or (m.kind == "lambda" and m.radius is None) for m in mixers):
            self.check_size(images)
        stem = self.stem(images, train)
        half, x = stem if isinstance(self.stem, Stem) else (stem, stem)
        return self.finished([half, *self.run_stages(x, train)], train, pyramid, out_indices)


def _stages(*mixers, depths=(2, 2, 2, 2), attend=((), (), (1,), (0, 1)), dims=(256, 512, 1024, 2048), **fields):
    """A ResNet's stages; `mixers`: of the last ones, the same for all where one is given."""
    mixers = mixers * 4 if len(mixers) == 1 else (None,) * (4 - len(mixers)) + mixers
    rows = zip(dims, depths, attend, mixers, (1, 2, 2, 2), strict=True)
    return tuple(
        Blocks(dim, depth, at, mixer if at else None, stride, **fields) for dim, depth, at, mixer, stride in rows
    )


def _of_50(*mixers, attend=((), (3,), (1, 3, 5), (1,))):
    """The same for ResNet-50."""
    return _stages(*mixers, depths=(3, 4, 6, 3), attend=attend)


def _of_33(mixer):
    """The same for ResNet-33, whose last stage is narrower in the middle."""
    *rows, last = _stages(mixer, depths=(2, 3, 3, 2), attend=((), (2,), (2,), (0, 1)), dims=(256, 512, 1024, 1536))
    return (*rows, last._replace(ratio=0.333))


def _register(name, params, gmacs, paper, tag="", *, crop_pct=0.95, img_size=256, told=None, **fields):
    register(
        name, HaloNet, HaloNetConfig(img_size=img_size, **fields), params=params, gmacs=gmacs, paper=paper,
        licence="apache-2.0", tags=(tag,), crop_pct=crop_pct, **(told or {}),
    )  # fmt: skip


_HALO, _BOTNET, _LAMBDA = "2103.12731", "2101.11605", "2102.08602"
_halo, _lambda = Mixer("halo"), Mixer("lambda", 4, 16)
_global = Mixer("global", 4)
_silu = dict(act="silu")
_33 = dict(_silu, stem_pool=False, inner_attention="se", head_dim=1280)
_eca = dict(_silu, inner_attention="eca")
_H1 = zip((64, 128, 256, 512), (3, 3, 10, 3), (1, 2, 2, 2), strict=True)

_register(
    "halonet_h1", 8_100_056, 3.0, _HALO, stem_dims=(64,), stem_kernel=7,
    stages=tuple(Blocks(dim, depth, tuple(range(depth)), _halo, stride, 1.0) for dim, depth, stride in _H1),
)  # fmt: skip
_halo_2 = _halo._replace(halo=2)
_register("halonet26t", 12_480_288, 3.19, _HALO, "a1h_in1k", stages=_stages(_halo_2))
_register("sehalonet33ts", 13_691_712, 3.55, _HALO, "ra2_in1k", crop_pct=0.94, stages=_of_33(_halo), **_33)
_register(
    "halonet50ts", 22_733_280, 5.3, _HALO, "a1h_in1k", crop_pct=0.94,
    stages=_of_50(_halo._replace(num_heads=4), _halo, _halo), **_silu,
)  # fmt: skip
_register(
    "eca_halonext26ts", 10_756_885, 2.44, _HALO, "c1_in1k", crop_pct=0.94,
    stages=_stages(_halo_2._replace(key_dim=16), group_width=16), **_eca,
)  # fmt: skip
_regnet = zip((48, 96, 192, 288), (2, 6, 12, 2), ((), (), (3, 7, 11), (0, 1)), strict=True)
_regnet_halo = Mixer("halo", key_ratio=0.33, window_size=7, halo=2)
_register(
    "haloregnetz_b", 11_680_072, 1.97, _HALO, "ra3_in1k", crop_pct=0.94, img_size=224,
    told=dict(mean=INCEPTION_MEAN, std=INCEPTION_STD), stem_dims=(32,), stem_pool=False, inner_attention="se",
    se_ratio=0.25, inverted=True, head_dim=1536, **_silu,
    stages=tuple(Blocks(*row, _regnet_halo, ratio=3, group_width=16) for row in _regnet),
)  # fmt: skip

_register("botnet26t_256", 12_488_672, 3.32, _BOTNET, "c1_in1k", stages=_stages(_global))
_register("sebotnet33ts_256", 13_701_984, 3.89, _BOTNET, "a1h_in1k", crop_pct=0.94, stages=_of_33(_global), **_33)
_register("botnet50ts_256", 22_742_688, 5.54, _BOTNET, stages=_of_50(_global), **_silu)
_register(
    "eca_botnext26ts_256", 10_593_301, 2.46, _BOTNET, "c1_in1k",
    stages=_stages(_global._replace(key_dim=16), group_width=16), **_eca,
)  # fmt: skip

_register("lambda_resnet26t", 10_958_272, 3.02, _LAMBDA, "c1_in1k", crop_pct=0.94, stages=_stages(_lambda))
_register("lambda_resnet50ts", 21_536_832, 5.07, _LAMBDA, "a1h_in1k", stages=_of_50(_lambda), **_silu)
_register(
    "lambda_resnet26rpt_256", 10_988_688, 3.16, _LAMBDA, "c1_in1k", crop_pct=0.94,
    stages=_stages(_lambda._replace(radius=None)),
)  # fmt: skip

_mixed = dict(_silu, stem_pool=False)
_every_other = ((), (1, 3), (1, 3, 5), (1,))
_register(
    "lamhalobotnet50ts_256", 22_569_824, 5.02, _HALO, "a1h_in1k",
    stages=_of_50(_lambda._replace(radius=13), _halo, _global, attend=_every_other), **_mixed,
)  # fmt: skip
_register(
    "halo2botnet50ts_256", 22_635_360, 5.02, _HALO, "a1h_in1k",
    stages=_of_50(_halo, _halo, _global, attend=_every_other), **_mixed,
)  # fmt: skip
_register(
    "bat_resnext26ts", 10_731_200, 2.53, "", "ch_in1k", crop_pct=0.9, stages=_stages(attend=((),) * 4, group_width=32),
    inner_attention="bat", **_silu,
)  # fmt: skip
