"""ResNet: Deep Residual Learning for Image Recognition (He et al., 2016, arXiv:1512.03385).

Layers learn a residual beside an identity shortcut. As in the released torch and timm weights, a bottleneck strides
in its 3x3 convolution ("v1.5"), where the paper strides in the first 1x1.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.pooling import max_pool
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model
from vision_jax.parameters import kaiming_normal, ones, torch_default, zeros
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A ResNet. `block`: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 to four times the channels)."""

    img_size: int | tuple = 224
    in_chans: int = 3
    num_classes: int = 1000
    block: str = "basic"
    depths: tuple = (2, 2, 2, 2)
    stem_dim: int = 64
    embed_dims: tuple = (64, 128, 256, 512)
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    zero_init_last: bool = True
    remat: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        check(self.block in ("basic", "bottleneck"), f"block={self.block!r}: one of 'basic', 'bottleneck'")
        same = len(self.depths) == len(self.embed_dims)
        check(same, f"depths={self.depths} and embed_dims={self.embed_dims} differ in length")


class Residual(nnx.Module):
    """Convolutions, each with batch norm, beside a shortcut: [B, H, W, Cin] -> [B, H/stride, W/stride, Cout].

    Args:
      din, dout: channels in and out.
      layers: (kernel size, channels out, stride) of each convolution.
      zero_init_last: start the branch's last norm at zero, so that the block starts as its shortcut.
    """

    def __init__(self, din, dout, layers, *, zero_init_last, dtype):
        self.layers = len(layers)
        stride, width = 1, din
        for i, (kernel_size, channels, step) in enumerate(layers, 1):
            last = zero_init_last and i == len(layers)
            setattr(self, f"conv{i}", _conv(width, channels, kernel_size, step, dtype))
            setattr(self, f"bn{i}", BatchNorm(channels, scale_init=zeros if last else ones, dtype=dtype))
            stride, width = stride * step, channels
        shortcut = stride > 1 or din != dout
        layers = (_conv(din, dout, 1, stride, dtype), BatchNorm(dout, dtype=dtype)) if shortcut else None
        self.downsample = nnx.List(layers) if shortcut else None

    def __call__(self, x, train=None):
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y), train)
            y = jax.nn.relu(y) if i < self.layers else y
        if self.downsample:
            conv, norm = self.downsample
            x = norm(conv(x), train)
        return tap(self, "output", constrain_batch(jax.nn.relu(x + drop_path(y, train))))


def _conv(din, dout, kernel_size, stride, dtype):
    return Conv(din, dout, kernel_size, stride=stride, bias=False, init=kaiming_normal, dtype=dtype)


class ResNet(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("fc",)
    # torchvision's names are the same
    torch_names: ClassVar = {"timm": tuple((rf"^stages\.{i}\.", f"layer{i + 1}.") for i in range(4))}

    def __init__(self, config):
        c = self.config = config
        self.conv1 = _conv(c.in_chans, c.stem_dim, 7, 2, c.dtype)
        self.bn1 = BatchNorm(c.stem_dim, dtype=c.dtype)
        stages, info, din = [], [FeatureInfo("act1", c.stem_dim, 2)], c.stem_dim
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            dout, stride = dim * (4 if c.block == "bottleneck" else 1), 2 if i else 1

            def block(index, din=din, dim=dim, dout=dout, stride=stride):
                step = 1 if index else stride
                basic = ((3, dim, step), (3, dim, 1))
                bottleneck = ((1, dim, 1), (3, dim, step), (1, dout, 1))
                layers = basic if c.block == "basic" else bottleneck
                return Residual(dout if index else din, dout, layers, zero_init_last=c.zero_init_last, dtype=c.dtype)

            stages.append(Stack(block, rates, remat=c.remat))
            info.append(FeatureInfo(f"layer{i + 1}", dout, 4 * 2**i))
            din = dout
        self.stages = nnx.List(stages)
        head = functools.partial(Linear, init=torch_default, bias_init=torch_default, dtype=c.dtype)
        self.fc = head(din, c.num_classes) if c.num_classes else None
        self.feature_info = tuple(info)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead: after the stem, before its pooling, and after each stage.
        """
        x = jax.nn.relu(self.bn1(self.conv1(images), train))
        maps = [x]
        x = max_pool(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x, train)
            maps.append(x)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else x

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.fc(x) if self.fc else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        stages = tuple((rf"^stages\.{i}\.", i + 1) for i in range(len(self.stages)))
        return ((r"^(conv1|bn1)", 0), *stages, (r"", len(self.stages) + 1))


def _resnet(name, block, depths, params, gmacs, tags):
    register(
        name, ResNet, ResNetConfig(block=block, depths=depths),
        params=params, gmacs=gmacs, paper="1512.03385", licence="apache-2.0", tags=tags,
    )  # fmt: skip


_resnet("resnet18", "basic", (2, 2, 2, 2), 11_689_512, 1.82, ("a1_in1k",))
_resnet("resnet34", "basic", (3, 4, 6, 3), 21_797_672, 3.67, ("a1_in1k",))
_resnet("resnet50", "bottleneck", (3, 4, 6, 3), 25_557_032, 4.11, ("a1_in1k",))
_resnet("resnet101", "bottleneck", (3, 4, 23, 3), 44_549_160, 7.83, ("a1h_in1k",))
_resnet("resnet152", "bottleneck", (3, 8, 36, 3), 60_192_808, 11.56, ("a1h_in1k",))
