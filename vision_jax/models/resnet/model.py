"""The model: a stem, stages of residual blocks, a mean, a classifier."""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.batch_channel_norm import BatchChannelNorm
from vision_jax.layers.blur_pool import blur_pool
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.efficient_channel_attention import EfficientChannelAttention
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import avg_pool, max_pool
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.layers.standardized_conv import StandardizedConv
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, stage_groups
from vision_jax.parameters import kaiming_normal, ones, torch_default, zeros
from vision_jax.registry import check

NORMS = ("batch", "group", "batch_channel", "estimated")
ATTENTIONS = (None, "se", "eca")
ANTI_ALIASES = (None, "blur", "mean")
STEM_POOLS = ("max", "conv")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ModelConfig):
    """A ResNet.

    `block`: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 to four times the channels). `deep_stem`: channels of the
    two 3x3 convolutions before a third to `stem_dim`, or () for one 7x7. `avg_down`: shortcuts stride by pooling.
    `cardinality` and `base_width`: groups of a bottleneck's 3x3 convolution, and the channels of each where embed_dims
    is 64 (ResNeXt's C and d). `norm`: "batch" or "group"; or "batch_channel", with standardised filters, and
    "estimated", the same for batches too small to have statistics of their own: see `layers.batch_channel_norm`, which
    has `norm_groups`, too.

    `attn`: what weighs a block's channels before its shortcut is added: None, "se" (squeeze-and-excitation, to a share
    `se_ratio` of them) or "eca". `anti_alias`: what strides in place of a 3x3 convolution and of the stem's pooling:
    None, "blur" or "mean". `stem_pool`: "max", or "conv" for a strided convolution. `reduce_first`: what the first
    convolution of a bottleneck has times fewer channels than the second. `shortcut_kernel`: of the strided shortcuts.
    `pruned`: for each stage, channels out, and for each of its blocks those of the first two convolutions; () where
    none are pruned.
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
    attn: str | None = None
    se_ratio: float = 1 / 16
    anti_alias: str | None = None
    stem_pool: str = "max"
    reduce_first: int = 1
    shortcut_kernel: int = 1
    pruned: tuple = ()

    def __post_init__(self):
        check(self.norm in NORMS, f"norm={self.norm!r}: one of {NORMS}")
        check(self.attn in ATTENTIONS, f"attn={self.attn!r}: one of {ATTENTIONS}")
        check(self.anti_alias in ANTI_ALIASES, f"anti_alias={self.anti_alias!r}: one of {ANTI_ALIASES}")
        check(self.stem_pool in STEM_POOLS, f"stem_pool={self.stem_pool!r}: one of {STEM_POOLS}")
        plain = self.stem_pool == "max" or not self.anti_alias
        check(plain, f"anti_alias={self.anti_alias!r} is for stem_pool='max'")
        check(self.block in ("basic", "bottleneck"), f"block={self.block!r}: one of 'basic', 'bottleneck'")
        check(
            len(self.depths) == len(self.embed_dims),
            f"depths={self.depths} and embed_dims={self.embed_dims} differ in length",
        )
        check(len(self.deep_stem) in (0, 2), f"deep_stem={self.deep_stem}: channels of two convolutions, or ()")
        check(
            self.block == "bottleneck" or (self.cardinality, self.base_width, self.reduce_first) == (1, 64, 1),
            f"cardinality={self.cardinality}, base_width={self.base_width} and reduce_first={self.reduce_first} "
            "are for block='bottleneck'",
        )
        widths = tuple(len(each) for _, each in self.pruned)
        fits = not widths or (self.block, widths) == ("bottleneck", tuple(self.depths))
        check(fits, f"pruned has widths for {widths} bottlenecks, depths={self.depths}, block={self.block!r}")

    def without(self, *names):
        """Raises InputError unless these fields are as in a plain ResNet: for networks that have nothing such."""
        for field in dataclasses.fields(ResNetConfig):
            value = getattr(self, field.name)
            check(field.name not in names or value == field.default, f"{field.name}={value!r}: not in these networks")

    def layers(self, dim, dout, stride):
        """(kernel size, channels out, stride, groups) of the convolutions of a stage's block of `dim` channels."""
        if self.block == "basic":
            return (3, dim, stride, 1), (3, dim, 1, 1)
        width = dim * self.base_width // 64 * self.cardinality
        return (1, width // self.reduce_first, 1, 1), (3, width, stride, self.cardinality), (1, dout, 1, 1)


class Residual(nnx.Module):
    """Convolutions, each with a norm, beside a shortcut: [B, H, W, Cin] -> [B, H/stride, W/stride, Cout].

    What is left over at the edges of maps of odd sizes is averaged, too; timm's anti-aliased networks refuse those.

    Args:
      c: the network's configuration.
      din, dout: channels in and out.
      layers: (kernel size, channels out, stride, groups) of each convolution.
      dim: channels that the attention over channels is meant for; others where the network is pruned.
      mixer: (din, dout, stride=, groups=, first=) -> what stands in place of the first 3x3 convolution, its norm and
        its activation; `first` where the shortcut is no identity. None for the convolution.
    """

    def __init__(self, c, din, dout, layers, *, dim, mixer=None):
        self.layers, self.mixes, self.thins, self.anti_alias = len(layers), 0, 0, c.anti_alias
        strides = max(step for _, _, step, _ in layers)
        changes, width = strides > 1 or din != dout, din
        for i, (kernel_size, channels, step, groups) in enumerate(layers, 1):
            if mixer and kernel_size == 3 and not self.mixes:
                setattr(self, f"conv{i}", mixer(width, channels, stride=step, groups=groups, first=changes))
                self.mixes, width = i, channels
                continue
            if c.anti_alias and step > 1:
                self.thins, step = i, 1
            last = c.zero_init_last and i == len(layers)
            setattr(self, f"conv{i}", plain_conv(c, width, channels, kernel_size, step, groups))
            setattr(self, f"bn{i}", make_norm(c, channels, zeros if last else ones))
            width = channels
        self.se = _attention(c, dout, dim)
        shortcut = []
        if changes:
            pool, kernel_size = [], c.shortcut_kernel if strides > 1 else 1
            if c.avg_down:
                pool, strides = [_halve if strides > 1 else _keep], 1
            shortcut = [*pool, plain_conv(c, din, dout, kernel_size, strides), make_norm(c, dout)]
        self.downsample = nnx.List(shortcut)

    def __call__(self, x, train=None):
        y = x
        for i in range(1, self.layers + 1):
            if i == self.mixes:
                y = getattr(self, f"conv{i}")(y, train)
                continue
            y = run(getattr(self, f"bn{i}"), getattr(self, f"conv{i}")(y), train)
            y = jax.nn.relu(y) if i < self.layers else y
            y = _THINNED[self.anti_alias](y) if i == self.thins else y
        y = drop_path(self.se(y) if self.se else y, train)
        for layer in self.downsample:
            x = run(layer, x, train)
        return tap(self, "output", constrain_batch(jax.nn.relu(x + y)))


def plain_conv(c, din, dout, kernel_size, stride=1, groups=1, **how):
    """A convolution as this configuration has them, without a bias unless `how` says so."""
    # the references' fan is that of all output channels, also where they are grouped
    init = dataclasses.replace(kaiming_normal, scale=kaiming_normal.scale / groups)
    how = dict(stride=stride, groups=groups, bias=False, init=init, dtype=c.dtype) | how
    if c.norm in ("batch", "group"):
        return Conv(din, dout, kernel_size, **how)
    return StandardizedConv(din, dout, kernel_size, standard_epsilon=1e-5, unbiased=True, **how)


def make_norm(c, dim, scale_init=ones):
    """A norm as this configuration has them."""
    if c.norm == "batch":
        return BatchNorm(dim, scale_init=scale_init, dtype=c.dtype)
    check(dim % c.norm_groups == 0, f"norm_groups={c.norm_groups} does not divide {dim} channels")
    if c.norm == "group":
        return GroupNorm(dim, c.norm_groups, scale_init=scale_init, dtype=c.dtype)
    estimated = c.norm == "estimated"
    return BatchChannelNorm(dim, c.norm_groups, estimated=estimated, scale_init=scale_init, dtype=c.dtype)


def _attention(c, dim, regular):
    if c.attn == "se":
        hidden = round_channels(dim * c.se_ratio, limit=0)
        return SqueezeExcite(dim, hidden, init=kaiming_normal, dtype=c.dtype)
    return EfficientChannelAttention(regular, dtype=c.dtype) if c.attn else None


def run(layer, x, train):
    """A layer or a function of a map; only norms with statistics of the batch ask whether it is training."""
    return layer(x, train) if isinstance(layer, BatchNorm | BatchChannelNorm) else layer(x)


def _halve(x):
    return avg_pool(x, 2, stride=2, ceil_mode=True)


def _keep(x):
    return x


def _max(x):
    return max_pool(x, 3, stride=2, padding=1)


def _blurred_max(x):
    return blur_pool(max_pool(x, 3, stride=1, padding=1))


def _mean(x):
    return avg_pool(x, 2, stride=2)


_THINNED, _STEM_POOLED = {"blur": blur_pool, "mean": _halve}, {None: _max, "blur": _blurred_max, "mean": _mean}


class ResNet(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("fc",)
    mixer = None  # what networks have that replace a block's 3x3 convolution: see `Residual`
    # torchvision's names are the same
    torch_names: ClassVar = {"timm": tuple((rf"^stages\.{i}\.", f"layer{i + 1}.") for i in range(4))}

    def __init__(self, config):
        c = self.config = config
        self.conv1 = self._deep_stem(c) if c.deep_stem else plain_conv(c, c.in_chans, c.stem_dim, 7, 2)
        self.bn1 = make_norm(c, c.stem_dim)
        self.maxpool = nnx.List(self._stem_pool(c))
        stages, info, din = [], [FeatureInfo("act1", c.stem_dim, 2)], c.stem_dim
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            regular, stride = dim * (4 if c.block == "bottleneck" else 1), 2 if i else 1
            dout = c.pruned[i][0] if c.pruned else regular

            def block(index, i=i, din=din, dim=dim, dout=dout, stride=stride, regular=regular):
                layers = c.layers(dim, dout, 1 if index else stride)
                if c.pruned:
                    widths = (*c.pruned[i][1][index], dout)
                    layers = [(size, width, *rest) for (size, _, *rest), width in zip(layers, widths, strict=True)]
                return Residual(c, dout if index else din, dout, layers, dim=regular, mixer=self.mixer)

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
            layers += [plain_conv(c, din, dim, 3, stride), make_norm(c, dim), jax.nn.relu]
            din = dim
        return nnx.List([*layers, plain_conv(c, din, c.stem_dim, 3)])

    @staticmethod
    def _stem_pool(c):
        if c.stem_pool == "max":
            return [_STEM_POOLED[c.anti_alias]]
        return [plain_conv(c, c.stem_dim, c.stem_dim, 3, 2), make_norm(c, c.stem_dim), jax.nn.relu]

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead: after the stem, before its pooling, and after each stage.
        """
        x = images
        for layer in self.conv1 if self.config.deep_stem else (self.conv1,):
            x = run(layer, x, train)
        pooled = x = jax.nn.relu(run(self.bn1, x, train))
        for layer in self.maxpool:
            pooled = run(layer, pooled, train)
        maps = [x, *self.run_stages(pooled, train)]
        return [maps[i] for i in self.indices(out_indices)] if pyramid else maps[-1]

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.fc(x) if self.fc else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^(conv1|bn1|maxpool)")
