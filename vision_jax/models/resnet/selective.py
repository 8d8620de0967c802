"""SKNet: Selective Kernel Networks (Li et al., 2019, arXiv:1903.06586).

Two convolutions see the map at two scales, and what the whole map holds selects between them, channel by channel.
Official repository: implus/SKNet; compared here with timm's, most of which give half of the channels to each scale.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from vision_jax.layers.channels import round_channels
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.models.resnet.model import ResNet, ResNetConfig, make_norm, plain_conv, run
from vision_jax.models.resnet.variants import BASIC, BOTTLENECK, D
from vision_jax.parameters import kaiming_normal
from vision_jax.registry import check, register

DILATIONS = (1, 2)  # of the two scales; the second's 3x3 taps span 5x5


@dataclasses.dataclass(frozen=True)
class SKNetConfig(ResNetConfig):
    """An SKNet.

    Attributes:
      split: each scale sees one half of the channels, where all of them see both otherwise.
      select_ratio, select_divisor: channels that select, as a share of the block's, and what their number is a multiple
        of.
    """

    split: bool = True
    select_ratio: float = 1 / 16
    select_divisor: int = 8
    zero_init_last: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.without("anti_alias", "pruned")


class SelectiveKernel(nnx.Module):
    """A 3x3 convolution at two scales, weighted by channel: [B, H, W, din] -> [B, H/stride, W/stride, dout].

    The weights of the two sum to 1 (section 3.1, equations 1 to 6).
    """

    def __init__(self, c, din, dout, stride, groups):
        check(not c.split or din % len(DILATIONS) == 0, f"split=True: {din} channels have no halves")
        self.split, kw = c.split, dict(bias=False, init=kaiming_normal, dtype=c.dtype)
        din = din // len(DILATIONS) if c.split else din
        self.convs = nnx.List([plain_conv(c, din, dout, 3, stride, groups, dilation=d) for d in DILATIONS])
        self.bns = nnx.List([make_norm(c, dout) for _ in DILATIONS])
        hidden = round_channels(dout * c.select_ratio, c.select_divisor)
        self.fc_reduce, self.norm = PointwiseConv(dout, hidden, **kw), BatchNorm(hidden, dtype=c.dtype)
        self.fc_select = PointwiseConv(hidden, len(DILATIONS) * dout, **kw)

    def __call__(self, x, train=None):
        half = x.shape[-1] // len(DILATIONS)
        seen = [x[..., i * half : (i + 1) * half] if self.split else x for i in range(len(DILATIONS))]
        branches = zip(self.convs, self.bns, seen, strict=True)
        first, second = (jax.nn.relu(run(norm, conv(y), train)) for conv, norm, y in branches)
        whole = jax.nn.relu(self.norm(self.fc_reduce((first + second).mean((1, 2), keepdims=True)), train))
        scores = self.fc_select(whole)
        weights = jax.nn.softmax(scores.reshape(*scores.shape[:-1], len(DILATIONS), -1), axis=-2)
        return first * weights[..., 0, :] + second * weights[..., 1, :]


class SKNet(ResNet):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {
        "timm": (
            *ResNet.torch_names["timm"],
            (r"(layer\d\.\d+)\.conv(\d)\.(weight)$", r"\1.conv\2.conv.\3"),
            (r"(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.bn."),
            (r"\.convs\.(\d)\.", r".paths.\1.conv."),
            (r"\.bns\.(\d)\.", r".paths.\1.bn."),
            (r"\.(fc_reduce|fc_select)\.", r".attn.\1."),
            (r"(layer\d\.\d+\.conv\d)\.norm\.", r"\1.attn.bn."),
        )
    }

    def mixer(self, din, dout, *, stride, groups, first):
        """What stands in place of a block's 3x3 convolution."""
        return SelectiveKernel(self.config, din, dout, stride, groups)


def _sknet(name, depths, params, gmacs, tag="", block="bottleneck", **fields):
    config = SKNetConfig(block=block, depths=depths, **fields)
    register(
        name, SKNet, config, params=params, gmacs=gmacs, paper="1903.06586", licence="apache-2.0" if tag else "",
        tags=(tag,),
    )  # fmt: skip


_SMALL = dict(block="basic", select_ratio=1 / 8, select_divisor=16)
_sknet("skresnet18", BASIC[18], 11_958_056, 1.82, "ra_in1k", **_SMALL)
_sknet("skresnet34", BASIC[34], 22_282_376, 3.67, "ra_in1k", **_SMALL)
_sknet("skresnet50", BOTTLENECK[50], 25_803_160, 4.11)
_sknet("skresnet50d", BOTTLENECK[50], 25_822_392, 4.36, **D)
_sknet(
    "skresnext50_32x4d", BOTTLENECK[50], 27_479_784, 4.50, "ra_in1k",
    split=False, select_divisor=32, cardinality=32, base_width=4,
)  # fmt: skip
