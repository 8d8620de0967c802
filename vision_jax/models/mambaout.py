"""MambaOut: Do We Really Need Mamba for Vision? (Yu & Wang, 2024, arXiv:2405.07992).

Mamba's block without its state space model: a gated CNN block, where a depthwise convolution over some of the channels
mixes the pixels and a gate follows it. That is enough to classify images. Official repository: yuweihao/MambaOut;
compared here with timm's, whose own variants (rw) have a learned scale on the branch, the norm before the downsampling
convolution, and no norm inside the head. timm starts that scale at 1e-5 whatever its configuration says; so does this.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.conv import Conv
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.scale import LayerScale
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel
from vision_jax.registry import check, register

ACTIVATIONS = {"gelu": gelu, "silu": jax.nn.silu}


@dataclasses.dataclass(frozen=True)
class MambaOutConfig(ModelConfig):
    """A MambaOut.

    `expansion_ratio`: channels of the gate over those of the block. `conv_ratio`: channels that are convolved over
    those of the block. `stem_norm`: a norm between the stem's convolutions. `norm_first`: the norm comes before a
    downsampling convolution. `head_norm`: a norm after the head's hidden layer. `act`: of stem and gate, "gelu" or
    "silu".
    """

    depths: tuple = (3, 3, 9, 3)
    embed_dims: tuple = (96, 192, 384, 576)
    expansion_ratio: float = 8 / 3
    conv_ratio: float = 1.0
    kernel_size: int = 7
    act: str = "gelu"
    stem_norm: bool = True
    norm_first: bool = False
    head_norm: bool = True
    layer_scale_init: float | None = None
    scan_blocks: bool = False

    def __post_init__(self):
        check(
            len(self.depths) == len(self.embed_dims),
            f"depths={self.depths} and embed_dims={self.embed_dims} differ in length",
        )
        check(
            0 < self.conv_ratio <= self.expansion_ratio,
            f"conv_ratio={self.conv_ratio} must be above 0 and at most expansion_ratio={self.expansion_ratio}",
        )
        check(self.kernel_size % 2 == 1, f"kernel_size={self.kernel_size} must be odd")
        check(self.act in ACTIVATIONS, f"act={self.act!r}: one of {tuple(ACTIVATIONS)}")


class GatedConvBlock(nnx.Module):
    """x + drop_path(scale(fc2(act(gate) * [identity, convolution(rest)]))), [B, H, W, C] -> [B, H, W, C].

    One linear map of the normalised input gives gate, identity part and rest (paper, figure 3).
    """

    def __init__(self, dim, config, norm):
        c = config
        hidden, convolved = int(c.expansion_ratio * dim), int(c.conv_ratio * dim)
        self.splits, self.act = (hidden, 2 * hidden - convolved), ACTIVATIONS[c.act]
        self.norm = norm(dim)
        self.fc1 = Linear(dim, 2 * hidden, dtype=c.dtype)
        self.conv = Conv(convolved, convolved, c.kernel_size, groups=convolved, dtype=c.dtype)
        self.fc2 = Linear(hidden, dim, dtype=c.dtype)
        self.ls = None if c.layer_scale_init is None else LayerScale(dim, c.layer_scale_init, dtype=c.dtype)

    def __call__(self, x, train=None):
        gate, identity, rest = jnp.split(self.fc1(self.norm(x)), self.splits, axis=-1)
        y = self.fc2(self.act(gate) * jnp.concatenate([identity, tap(self, "conv", self.conv(rest))], axis=-1))
        return tap(self, "output", constrain_batch(x + drop_path(self.ls(y) if self.ls else y, train)))


class Stem(nnx.Module):
    """Two 3x3 convolutions of stride 2, images [B, H, W, C] -> [B, H/4, W/4, dim]."""

    def __init__(self, channels, dim, *, middle_norm, act, norm, dtype):
        self.act = act
        self.conv1 = Conv(channels, dim // 2, 3, stride=2, dtype=dtype)
        self.norm1 = norm(dim // 2) if middle_norm else None
        self.conv2 = Conv(dim // 2, dim, 3, stride=2, dtype=dtype)
        self.norm2 = norm(dim)

    def __call__(self, x):
        x = self.conv1(x)
        x = self.norm1(x) if self.norm1 else x
        return self.norm2(self.conv2(self.act(x)))


_OFFICIAL = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.pre_logits\.fc\.", "head.fc1."),
    (r"^head\.pre_logits\.norm\.", "head.norm."),
    (r"^head\.fc\.", "head.fc2."),
)


class MambaOut(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {"timm": (), "official": _OFFICIAL}

    def __init__(self, config):
        c = self.config = config
        norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        din = c.embed_dims[0]
        self.stem = Stem(c.in_chans, din, middle_norm=c.stem_norm, act=ACTIVATIONS[c.act], norm=norm, dtype=c.dtype)
        stages, info = [], []
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            down = (
                Downsample(din, dim, 3, stride=2, padding=1, norm=norm, norm_first=c.norm_first, dtype=c.dtype)
                if i
                else None
            )
            blocks = Stack(
                lambda index, dim=dim: GatedConvBlock(dim, c, norm), rates, scan=c.scan_blocks, remat=c.remat
            )
            stages.append(Stage(down, blocks))
            info.append(FeatureInfo(f"stages.{i}", dim, 4 * 2**i))
            din = dim
        self.stages, self.feature_info = nnx.List(stages), tuple(info)
        self.head = PooledHead(
            din, c.num_classes, norm=norm, hidden=4 * din, hidden_norm=norm if c.head_norm else None, drop=c.drop_rate,
            dtype=c.dtype,
        )  # fmt: skip


_SMALL, _BASE = (96, 192, 384, 576), (128, 256, 512, 768)


def _mambaout(name, depths, embed_dims, params, gmacs, tags=("in1k",), crop_pct=1.0, **fields):
    register(
        f"mambaout_{name}", MambaOut, MambaOutConfig(depths=depths, embed_dims=embed_dims, **fields),
        params=params, gmacs=gmacs, paper="2405.07992", licence="apache-2.0", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_mambaout("femto", (3, 3, 9, 3), (48, 96, 192, 288), 7_304_536, 1.2)
_mambaout("kobe", (3, 3, 15, 3), (48, 96, 192, 288), 9_141_208, 1.5)
_mambaout("tiny", (3, 3, 9, 3), _SMALL, 26_545_096, 4.5)
_mambaout("small", (3, 4, 27, 3), _SMALL, 48_488_072, 9.0)
_mambaout("base", (3, 4, 27, 3), _BASE, 84_813_092, 15.8)

# timm's own; their multiply-adds are counted
_RW = dict(stem_norm=False, norm_first=True, head_norm=False, layer_scale_init=1e-5)
_PLUS = {
    "sw_e150_in12k_ft_in1k": {},
    "sw_e150_r384_in12k_ft_in1k": {"img_size": 384, "crop_mode": "squash"},
    "sw_e150_in12k": {"num_classes": 11821},
}
# fmt: off
_mambaout("small_rw", (3, 4, 27, 3), _SMALL, 48_495_560, 8.96, ("sw_e450_in1k",), **_RW)
_mambaout("base_short_rw", (3, 3, 25, 3), _BASE, 88_827_688, 16.31, ("sw_e500_in1k",), 0.95, expansion_ratio=3.0,
          conv_ratio=1.25, **_RW)
_mambaout("base_tall_rw", (3, 4, 30, 3), _BASE, 86_481_448, 16.15, ("sw_e500_in1k",), 0.95, expansion_ratio=2.5,
          conv_ratio=1.25, **_RW)
_mambaout("base_wide_rw", (3, 4, 27, 3), _BASE, 94_448_104, 17.78, ("sw_e500_in1k",), 0.95, expansion_ratio=3.0,
          conv_ratio=1.5, act="silu", **_RW)
_mambaout("base_plus_rw", (3, 4, 30, 3), _BASE, 101_656_552, 19.19, _PLUS, expansion_ratio=3.0, conv_ratio=1.5,
          act="silu", **_RW)
# fmt: on
