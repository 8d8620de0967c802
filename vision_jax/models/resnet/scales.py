"""Res2Net: A New Multi-scale Backbone Architecture (Gao et al., 2019, arXiv:1904.01169).

Within a bottleneck channels are cut into groups, and each group's 3x3 convolution sees the result of the one before it,
too: so one block holds receptive fields of many sizes. Official repository: Res2Net/Res2Net-PretrainedModels; compared
here with timm's. As in the released code, groups do not see each other where a block changes the map's shape.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.pooling import padded_mean
from vision_jax.models.resnet.model import ResNet, ResNetConfig, make_norm, plain_conv, run
from vision_jax.models.resnet.variants import BOTTLENECK, D
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class Res2NetConfig(ResNetConfig):
    """A Res2Net: `scale` groups, the paper's s, of `base_width` channels each where embed_dims is 64, its w."""

    block: str = "bottleneck"
    scale: int = 4

    def __post_init__(self):
        super().__post_init__()
        check(self.block == "bottleneck", f"block={self.block!r}: 'bottleneck' alone has scales")
        self.without("anti_alias", "reduce_first", "pruned")
        check(self.scale > 1, f"scale={self.scale}: at least 2")

    def layers(self, dim, dout, stride):
        """(kernel size, channels out, stride, groups) of the convolutions of a stage's block of `dim` channels."""
        width = self.scale * (dim * self.base_width // 64) * self.cardinality
        return (1, width, 1, 1), (3, width, stride, self.cardinality), (1, dout, 1, 1)


class ScaledConv(nnx.Module):
    """3x3 convolutions of groups of channels, one after the other: [B, H, W, C] -> [B, H/stride, W/stride, C].

    The last group is not convolved (section 3.1, equation 1); where the shape changes it is averaged, with zeros beyond
    the edges, as in the released code.
    """

    def __init__(self, c, dim, stride, groups, first):
        width, self.stride, self.first = dim // c.scale, stride, first
        self.convs = nnx.List([plain_conv(c, width, width, 3, stride, groups) for _ in range(c.scale - 1)])
        self.bns = nnx.List([make_norm(c, width) for _ in range(c.scale - 1)])

    def __call__(self, x, train=None):
        *parts, last = jnp.split(x, len(self.convs) + 1, axis=-1)
        done = []
        for conv, norm, part in zip(self.convs, self.bns, parts, strict=True):
            part = part + done[-1] if done and not self.first else part
            done.append(jax.nn.relu(run(norm, conv(part), train)))
        return jnp.concatenate([*done, padded_mean(last, 3, self.stride) if self.first else last], axis=-1)


class Res2Net(ResNet):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {"timm": (*ResNet.torch_names["timm"], (r"\.conv2\.(convs|bns)\.", r".\1."))}

    def mixer(self, din, dout, *, stride, groups, first):
        """What stands in place of a block's 3x3 convolution."""
        return ScaledConv(self.config, dout, stride, groups, first)


def _res2net(name, layers, params, gmacs, base_width=26, scale=4, **fields):
    config = Res2NetConfig(depths=BOTTLENECK[layers], base_width=base_width, scale=scale, **fields)
    register(
        name, Res2Net, config, params=params, gmacs=gmacs, paper="1904.01169", licence="unknown", tags=("in1k",),
        interpolation="bilinear",
    )  # fmt: skip


_res2net("res2net50_26w_4s", 50, 25_699_120, 4.28)
_res2net("res2net50_48w_2s", 50, 25_287_304, 4.18, 48, 2)
_res2net("res2net50_14w_8s", 50, 25_059_816, 4.21, 14, 8)
_res2net("res2net50_26w_6s", 50, 37_051_448, 6.33, 26, 6)
_res2net("res2net50_26w_8s", 50, 48_403_776, 8.37, 26, 8)
_res2net("res2net101_26w_4s", 101, 45_206_688, 8.10)
_res2net("res2next50", 50, 24_671_464, 4.20, 4, 4, cardinality=8)
_res2net("res2net50d", 50, 25_718_352, 4.52, **D)
_res2net("res2net101d", 101, 45_225_920, 8.35, **D)
