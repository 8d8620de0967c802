"""ResNeSt: Split-Attention Networks (Zhang et al., 2020, arXiv:2004.08955).

Each group of a bottleneck's 3x3 convolution is computed several times over, and what the whole map holds weighs these
splits against each other, channel by channel. Official repository: zhanghang1989/ResNeSt; compared here with timm's,
but for one thing: drop-path drops the branch, where timm's drops the input of those shortcuts that are projected.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from vision_jax.layers.channels import round_channels
from vision_jax.layers.pooling import padded_mean
from vision_jax.models.resnet.model import ResNet, ResNetConfig, make_norm, plain_conv, run
from vision_jax.models.resnet.variants import BOTTLENECK, D, S
from vision_jax.parameters import torch_default
from vision_jax.registry import check, register

LEAST = 32  # channels between the two maps that weigh


@dataclasses.dataclass(frozen=True)
class ResNeStConfig(ResNetConfig):
    """A ResNeSt: `radix` splits of each of `cardinality` groups.

    A radix of 1 splits nothing; channels are then weighted by themselves. `pool_first`: blocks stride before their 3x3
    convolution, where others do after it.
    """

    block: str = "bottleneck"
    pool_first: bool = False
    radix: int = 2

    def __post_init__(self):
        super().__post_init__()
        check(self.block == "bottleneck", f"block={self.block!r}: 'bottleneck' alone has splits")
        check(self.radix > 0, f"radix={self.radix}: at least 1")
        self.without("anti_alias", "reduce_first", "pruned")


class SplitAttention(nnx.Module):
    """A 3x3 convolution of `radix` splits and their weighted sum: [B, H, W, C] -> [B, H/stride, W/stride, C].

    Section 3.1, equations 1 to 3. It strides by averaging three by three, with zeros beyond the edges (section 3.2).
    """

    def __init__(self, c, dim, stride, groups):
        self.radix, self.groups, self.stride, self.pool_first = c.radix, groups, stride, c.pool_first
        kw = dict(bias=True, bias_init=torch_default)
        hidden = max(LEAST, round_channels(dim * c.radix / 4))
        self.conv, self.bn0 = plain_conv(c, dim, c.radix * dim, 3, 1, groups * c.radix), make_norm(c, c.radix * dim)
        # not fc1 and fc2, whose channels devices share: groups would be gathered again
        self.squeeze, self.bn1 = plain_conv(c, dim, hidden, 1, 1, groups, **kw), make_norm(c, hidden)
        self.excite = plain_conv(c, hidden, c.radix * dim, 1, 1, groups, **kw)

    def __call__(self, x, train=None):
        x = padded_mean(x, 3, self.stride) if self.stride > 1 and self.pool_first else x
        x = jax.nn.relu(run(self.bn0, self.conv(x), train))
        B, H, W, _ = x.shape
        x = x.reshape(B, H, W, self.radix, -1)
        whole = x.sum(3).mean((1, 2), keepdims=True)
        scores = self.excite(jax.nn.relu(run(self.bn1, self.squeeze(whole), train)))
        # the convolution's channels lie split by split, the weights' group by group
        scores = scores.reshape(B, 1, 1, self.groups, self.radix, -1).swapaxes(3, 4)
        weights = jax.nn.softmax(scores, axis=3) if self.radix > 1 else jax.nn.sigmoid(scores)
        x = (x * weights.reshape(B, 1, 1, self.radix, -1)).sum(3)
        return padded_mean(x, 3, self.stride) if self.stride > 1 and not self.pool_first else x


class ResNeSt(ResNet):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {"timm": (*ResNet.torch_names["timm"], (r"\.squeeze\.", ".fc1."), (r"\.excite\.", ".fc2."))}

    def mixer(self, din, dout, *, stride, groups, first):
        """What stands in place of a block's 3x3 convolution."""
        return SplitAttention(self.config, dout, stride, groups)


def _resnest(name, depths, params, gmacs, img_size=224, tag="in1k", *, fields=D, radix=2, crop_pct=0.875, **own):
    preprocessing = dict(crop_pct=crop_pct, interpolation=own.pop("interpolation", "bilinear"))
    config = ResNeStConfig(depths=depths, img_size=img_size, radix=radix, **(fields | own))
    register(
        name, ResNeSt, config, params=params, gmacs=gmacs, paper="2004.08955", licence="apache-2.0", tags=(tag,),
        **preprocessing,
    )  # fmt: skip


_E, _BICUBIC = dict(S, avg_down=True), dict(interpolation="bicubic")
_FAST = dict(_BICUBIC, pool_first=True)
_resnest("resnest14d", BOTTLENECK[14], 10_611_688, 2.76, tag="gluon_in1k")
_resnest("resnest26d", BOTTLENECK[26], 17_069_448, 3.64, tag="gluon_in1k")
_resnest("resnest50d", BOTTLENECK[50], 27_483_240, 5.40)
_resnest("resnest101e", BOTTLENECK[101], 48_275_016, 13.38, 256, fields=_E)
_resnest("resnest200e", BOTTLENECK[200], 70_201_544, 35.69, 320, fields=_E, crop_pct=0.909, **_BICUBIC)
_resnest("resnest269e", BOTTLENECK[269], 110_929_480, 77.69, 416, fields=_E, crop_pct=0.928, **_BICUBIC)
_resnest("resnest50d_4s2x40d", BOTTLENECK[50], 30_417_592, 4.40, radix=4, cardinality=2, base_width=40, **_FAST)
_resnest("resnest50d_1s4x24d", BOTTLENECK[50], 25_677_000, 4.43, radix=1, cardinality=4, base_width=24, **_FAST)
