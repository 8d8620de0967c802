"""DenseNet: Densely Connected Convolutional Networks (Huang et al., 2017, arXiv:1608.06993).

Every layer of a block sees the maps of all before it, side by side, and adds `growth_rate` channels; between blocks a
1x1 convolution halves the channels and a mean the map (DenseNet-BC). Official repository: liuzhuang13/DenseNet;
compared here with timm's, whose weights are torchvision's and its own. The `d` variants have a stem of three 3x3
convolutions, `blur` one that strides by a blur.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.blur_pool import blur_pool
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import avg_pool, max_pool
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel
from vision_jax.parameters import VarianceScaling, torch_default
from vision_jax.registry import check, register

_INIT = VarianceScaling(2.0, "fan_in")


@dataclasses.dataclass(frozen=True)
class DenseNetConfig(ModelConfig):
    """A DenseNet.

    Attributes:
      depths: number of layers, a block.
      growth_rate: channels that a layer adds, the paper's k; the stem gives twice as many.
      bottleneck: channels inside a layer, as a multiple of `growth_rate`.
      deep_stem: three 3x3 convolutions, not one 7x7.
      blur: the stem strides by a blur.
      drop_path_rate: of the channels that a layer adds; the paper and the reference drop none.
    """

    depths: tuple = (6, 12, 24, 16)
    growth_rate: int = 32
    bottleneck: int = 4
    deep_stem: bool = False
    blur: bool = False

    def __post_init__(self):
        check(len(self.depths) > 0, "depths=(): at least one")


class Stem(nnx.Module):
    """Convolutions, batch norms, ReLUs: images [B, H, W, C] -> [B, H/2, W/2, dim]."""

    def __init__(self, c, dim):
        dims = (c.in_chans, c.growth_rate, c.growth_rate, dim) if c.deep_stem else (c.in_chans, dim)
        how = dict(bias=False, init=_INIT, dtype=c.dtype)
        size = 3 if c.deep_stem else 7
        self.convs = nnx.List(
            [Conv(*pair, size, stride=1 if i else 2, **how) for i, pair in enumerate(itertools.pairwise(dims))]
        )
        self.norms = nnx.List([BatchNorm(dim, dtype=c.dtype) for dim in dims[1:]])

    def __call__(self, x, train=None):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x), train))
        return x


class DenseLayer(nnx.Module):
    """A map, and beside it what a 1x1 and a 3x3 convolution make of it: [B, H, W, C] -> [B, H, W, C + growth_rate]."""

    def __init__(self, dim, c):
        hidden, how = c.bottleneck * c.growth_rate, dict(bias=False, init=_INIT, dtype=c.dtype)
        self.norm1, self.conv1 = BatchNorm(dim, dtype=c.dtype), PointwiseConv(dim, hidden, **how)
        self.norm2, self.conv2 = BatchNorm(hidden, dtype=c.dtype), Conv(hidden, c.growth_rate, 3, **how)

    def __call__(self, x, train=None):
        y = self.conv1(jax.nn.relu(self.norm1(x, train)))
        y = self.conv2(jax.nn.relu(self.norm2(y, train)))
        return tap(self, "output", constrain_batch(jnp.concatenate([x, drop_path(y, train)], axis=-1)))


class Transition(nnx.Module):
    """Half the channels at half the size: [B, H, W, dim] -> [B, H/2, W/2, dim/2]."""

    def __init__(self, dim, c):
        self.norm = BatchNorm(dim, dtype=c.dtype)
        self.conv = PointwiseConv(dim, dim // 2, bias=False, init=_INIT, dtype=c.dtype)

    def __call__(self, x, train=None):
        return avg_pool(self.conv(jax.nn.relu(self.norm(x, train))), 2, stride=2)


def _layer(match):
    return f"features.denseblock{int(match[1]) + 1}.denselayer{int(match[2]) + 1}."


class DenseNet(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {
        "timm": (
            (r"^stem\.(conv|norm)s\.", r"features.\1"),
            (r"^stages\.(\d+)\.blocks\.(\d+)\.", _layer),
            (r"^stages\.(\d+)\.downsample\.", r"features.transition\1."),
            (r"^norm\.", "features.norm5."),
            (r"^head\.fc\.", "classifier."),
        ),
    }

    def __init__(self, config):
        c = self.config = config
        dim = 2 * c.growth_rate
        self.stem, stages, info = Stem(c, dim), [], [FeatureInfo("stem", dim, 2)]
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            transition = Transition(dim, c) if i else None
            dim = dim // 2 if i else dim
            make = functools.partial(self._layer, dim)
            stages.append(Stage(transition, Stack(make, rates, remat=c.remat)))
            dim += len(rates) * c.growth_rate
            info.append(FeatureInfo(f"stages.{i}", dim, 4 * 2**i))
        self.stages, self.norm = nnx.List(stages), BatchNorm(dim, dtype=c.dtype)
        self.feature_info = (*info[:-1], info[-1]._replace(name="norm"))
        classifier = functools.partial(Linear, init=torch_default)
        self.head = PooledHead(dim, c.num_classes, drop=c.drop_rate, classifier=classifier, dtype=c.dtype)

    def _layer(self, dim, index):
        """Layer `index` of a block that begins with `dim` channels."""
        return DenseLayer(dim + index * self.config.growth_rate, self.config)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C], normalised and activated.

        pyramid=True gives the maps in `out_indices` instead: the stem's at half the image's size, and each block's.
        """
        stem = self.stem(images, train)
        x = max_pool(stem, 3, stride=1 if self.config.blur else 2, padding=1)
        *maps, x = self.run_stages(blur_pool(x) if self.config.blur else x, train)
        x = jax.nn.relu(self.norm(x, train))
        maps = [stem, *maps, x]
        return [maps[i] for i in self.indices(out_indices)] if pyramid else x


def _densenet(name, params, gmacs, tags=("tv_in1k",), **fields):
    register(
        f"densenet{name}", DenseNet, DenseNetConfig(**fields), params=params, gmacs=gmacs, paper="1608.06993",
        licence="apache-2.0", tags=tags,
    )  # fmt: skip


_densenet("121", 7_978_856, 2.87, ("ra_in1k", "tv_in1k"))
_densenet("blur121d", 7_998_088, 3.11, ("ra_in1k",), deep_stem=True, blur=True)
_densenet("169", 14_149_480, 3.4, depths=(6, 12, 32, 32))
_densenet("201", 20_013_928, 4.34, depths=(6, 12, 48, 32))
_densenet("161", 28_681_000, 7.79, depths=(6, 12, 36, 24), growth_rate=48)
_densenet("264d", 72_736_216, 13.57, ("",), depths=(6, 12, 64, 48), growth_rate=48, deep_stem=True)
