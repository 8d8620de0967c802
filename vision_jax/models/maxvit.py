"""MaxViT: Multi-Axis Vision Transformer (Tu et al., 2022, arXiv:2204.01697).

Every block looks three ways: a convolution (MBConv with squeeze-and-excitation) for neighbours, attention inside the
windows of a map, and attention over a grid of tokens spread evenly over it, so that each sees the whole map at linear
cost. Official repository: google-research/maxvit; compared here with timm's, to which its weights were ported.

The `_tf_` variants are the paper's: as in the released code, TensorFlow's padding, the tanh GELU and a hidden layer
before the classifier. The others are timm's own. `_rw_`: SiLU, symmetric padding and narrower expansions (of a block's
input, not its output); `_rmlp_`: a small network makes the relative position bias; `_pm_`: windows and grid side by
side. MaxxViT has ConvNeXt's block for MBConv, and its second version attends over the grid alone.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.attention import QKV, HeadsFirstQKV
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu, gelu_tanh
from vision_jax.models.conv_attention import ConvAttention, ConvAttentionConfig, RelativeAttention, conv_block
from vision_jax.registry import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, check, register

AXES = ("both", "grid", "parallel")


@dataclasses.dataclass(frozen=True)
class MaxViTConfig(ConvAttentionConfig):
    """A MaxViT; see `ConvAttentionConfig` too.

    `window_size` (P, and G of the grid) is a 32nd of the image if None; `tf` chooses the released code's paddings,
    activations and epsilons. `axes`: "both" for windows and then the grid; "grid" for it alone; "parallel" for both at
    once with half the channels each, after two convolutions.
    """

    window_size: int | tuple | None = None
    tf: bool = True
    position: str = "map"
    axes: str = "both"

    def __post_init__(self):
        super().__post_init__()
        check(self.axes in AXES, f"axes={self.axes!r}: one of {', '.join(map(repr, AXES))}")
        for size, window in zip(pair(self.img_size), self.window, strict=True):
            maps = [-(-size // 2 ** (i + 2)) for i in range(len(self.depths))]
            check(
                window > 0 and all(n % window == 0 for n in maps),
                f"img_size={self.img_size} gives maps of {maps} tokens, not multiples of the window of {window}; "
                f"{max(round(size / 32), 1) * 32} with window_size=None would do",
            )

    @property
    def window(self):
        """(height, width) of a window and of the grid, in tokens."""
        return pair(self.window_size) if self.window_size else tuple(size // 32 for size in pair(self.img_size))

    @property
    def conv_act(self):
        """The activation of the stem and of the convolutions' blocks."""
        return gelu_tanh if self.tf else jax.nn.silu if self.conv == "mbconv" else gelu


def convolution(c, din, dim, stride):
    """MBConv or ConvNeXt's block, [B, H, W, din] -> [B, H/stride, W/stride, dim]."""
    how = dict(epsilon=1e-3 if c.tf else 1e-5, padding="same" if c.tf else None, bias=c.tf)
    return conv_block(c, din, dim, stride, init=c.conv_init, **how)


def attention(c, dim, dout, *, grid):
    """Attention in windows or over the grid, [B, H, W, dim] -> [B, H, W, dout]."""
    qkv = QKV if c.tf else HeadsFirstQKV
    return RelativeAttention(c, dim, dim, dout, window_size=c.window, grid=grid, qkv=qkv)


def transformer(c, dim, attn):
    """Attention and an MLP, [B, H, W, dim] -> the same."""
    linear = functools.partial(Linear, **c.mlp_init)
    mlp = Mlp(dim, 4 * dim, act=gelu_tanh if c.tf else gelu, linear=linear, dtype=c.dtype)
    return Block(dim, attn=attn, mlp=mlp, norm=c.norm, layer_scale=c.layer_scale_init, dtype=c.dtype)


class MaxViTBlock(nnx.Module):
    """Convolution, window attention, grid attention: [B, H, W, din] -> [B, H/stride, W/stride, dim] (figure 2)."""

    def __init__(self, c, din, dim, stride):
        self.conv = convolution(c, din, dim, stride)
        self.attn_block = transformer(c, dim, attention(c, dim, dim, grid=False)) if c.axes == "both" else None
        self.attn_grid = transformer(c, dim, attention(c, dim, dim, grid=True))

    def __call__(self, x, train=None):
        x = self.conv(x, train)
        x = self.attn_block(x, train) if self.attn_block else x
        return self.attn_grid(x, train)


class ParallelAttention(nnx.Module):
    """Window attention and grid attention side by side, half the channels from each: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, dim):
        self.attn_block, self.attn_grid = (attention(c, dim, dim // 2, grid=grid) for grid in (False, True))

    def __call__(self, x, train=None):
        return jnp.concatenate([self.attn_block(x, train), self.attn_grid(x, train)], axis=-1)


class ParallelMaxViTBlock(nnx.Module):
    """Two convolutions, attention both ways at once: [B, H, W, din] -> [B, H/stride, W/stride, dim] (timm's own)."""

    def __init__(self, c, din, dim, stride):
        self.conv = nnx.List([convolution(c, din, dim, stride), convolution(c, dim, dim, 1)])
        self.attn = transformer(c, dim, ParallelAttention(c, dim))

    def __call__(self, x, train=None):
        for conv in self.conv:
            x = conv(x, train)
        return self.attn(x, train)


class MaxViT(ConvAttention):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {"timm": ((r"\.attn\.attn\.attn_", ".attn.attn_"),)}

    def __init__(self, config):
        c, kind = config, ParallelMaxViTBlock if config.axes == "parallel" else MaxViTBlock
        super().__init__(c, lambda i, j, din: kind(c, din, c.embed_dims[i], 1 if j else 2))


_SMALL, _LARGE = (2, 2, 5, 2), (2, 6, 14, 2)
_FINE_TUNED = {"in1k": {}, "in21k_ft_in1k": {}}
_IMAGENET = {"in1k": dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)}
_PRETRAINED = {"in21k": dict(num_classes=21843)}


def _maxvit(name, size, depths, width, params, gmacs, tags, *, family="maxvit", crop_pct=None, **fields):
    register(
        f"{family}_{name}_{size}", MaxViT,
        MaxViTConfig(img_size=size, depths=depths, embed_dims=tuple(width * 2**i for i in range(4)), **fields),
        params=params, gmacs=gmacs, paper="2204.01697", licence="apache-2.0", tags=tags,
        mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=crop_pct or (0.95 if size < 384 else 1.0),
        crop_mode="center" if size < 384 else "squash",
    )  # fmt: skip


def _paper(name, size, depths, width, params, gmacs, tags, stem=64, **fields):
    stem = dict(stem_dims=(stem, stem), head_hidden=8 * width)
    _maxvit(f"{name}_tf", size, depths, width, params, gmacs, tags, **stem, **fields)


_paper("tiny", 224, _SMALL, 64, 30_916_528, 5.60, _IMAGENET)
_paper("tiny", 384, _SMALL, 64, 30_977_008, 17.53, ("in1k",))
_paper("tiny", 512, _SMALL, 64, 31_049_584, 33.49, ("in1k",))
_paper("small", 224, _SMALL, 96, 68_927_956, 11.66, _IMAGENET)
_paper("small", 384, _SMALL, 96, 69_018_676, 35.87, ("in1k",))
_paper("small", 512, _SMALL, 96, 69_127_540, 67.26, ("in1k",))
_paper("base", 224, _LARGE, 96, 119_467_708, 24.04, {**_IMAGENET, **_PRETRAINED})
_paper("base", 384, _LARGE, 96, 119_653_468, 73.80, _FINE_TUNED)
_paper("base", 512, _LARGE, 96, 119_876_380, 138.02, _FINE_TUNED)
_paper("large", 224, _LARGE, 128, 211_785_560, 43.68, {**_IMAGENET, **_PRETRAINED}, stem=128)
_paper("large", 384, _LARGE, 128, 212_033_240, 132.55, _FINE_TUNED, stem=128)
_paper("large", 512, _LARGE, 128, 212_330_456, 244.75, _FINE_TUNED, stem=128)
_paper("xlarge", 224, _LARGE, 192, 506_987_643, 97.52, _PRETRAINED, stem=192, num_classes=21843)
_paper("xlarge", 384, _LARGE, 192, 475_323_472, 292.78, ("in21k_ft_in1k",), stem=192)
_paper("xlarge", 512, _LARGE, 192, 475_769_296, 534.14, ("in21k_ft_in1k",), stem=192)

_RW = dict(tf=False, expand_output=False, se_ratio=1 / 16, position="table")
_RMLP = dict(_RW, position="mlp")
_BASE = dict(_RMLP, stem_dims=(32, 64), head_hidden=768)
_SCALED = dict(_RMLP, stem_dims=(32, 64), layer_scale_init=1e-6)
_NANO = (1, 2, 3, 1)
_12K = {"sw_in12k_ft_in1k": {}, "sw_in12k": dict(num_classes=11821)}
_maxvit("pico_rw", 256, _SMALL, 32, 7_457_996, 1.83, ("",), stem_dims=(24, 32), **_RW)
_maxvit("nano_rw", 256, _NANO, 64, 15_451_148, 4.46, ("sw_in1k",), stem_dims=(32, 64), **_RW)
_maxvit("tiny_rw", 224, _SMALL, 64, 29_057_312, 5.11, ("sw_in1k",), stem_dims=(32, 64), **_RW)
_maxvit("tiny_rw", 256, _SMALL, 64, 29_066_720, 6.74, ("",), stem_dims=(32, 64), **_RW)
_maxvit("tiny_pm", 256, _SMALL, 64, 30_089_344, 6.61, ("",), stem_dims=(32, 64), axes="parallel", **_RW)
_maxvit("rmlp_pico_rw", 256, _SMALL, 32, 7_515_980, 1.85, ("sw_in1k",), stem_dims=(24, 32), **_RMLP)
_maxvit("rmlp_nano_rw", 256, _NANO, 64, 15_501_452, 4.47, ("sw_in1k",), stem_dims=(32, 64), **_RMLP)
_maxvit("rmlp_tiny_rw", 256, _SMALL, 64, 29_148_896, 6.77, ("sw_in1k",), stem_dims=(32, 64), **_RMLP)
_maxvit("rmlp_small_rw", 224, _SMALL, 96, 64_895_044, 10.75, ("sw_in1k",), crop_pct=0.9, **_SCALED)
_maxvit("rmlp_small_rw", 256, _SMALL, 96, 64_895_044, 14.15, ("",), **_SCALED)
_maxvit("rmlp_base_rw", 224, _LARGE, 96, 116_135_788, 23.15, _12K, **_BASE)
_maxvit("rmlp_base_rw", 384, _LARGE, 96, 116_135_788, 70.97, ("sw_in12k_ft_in1k",), **_BASE)

_NEXT = dict(tf=False, conv="convnext", position="mlp", layer_scale_init=1e-6)
_maxxvit = functools.partial(_maxvit, family="maxxvit", **_NEXT)
_maxxvit("rmlp_nano_rw", 256, _NANO, 64, 16_779_628, 4.37, ("sw_in1k",), stem_dims=(32, 64), normal_init=True)
_maxxvit("rmlp_tiny_rw", 256, _SMALL, 64, 29_636_528, 6.66, ("",), stem_dims=(32, 64))
_maxxvit("rmlp_small_rw", 256, _SMALL, 96, 66_010_516, 14.67, ("sw_in1k",), stem_dims=(48, 96))

_maxxvitv2 = functools.partial(_maxvit, family="maxxvitv2", **dict(_NEXT, axes="grid"))
_V2_NANO = dict(stem_dims=(48, 96), normal_init=True, position="table")
_V2_LARGE = dict(stem_dims=(80, 160), head_hidden=1280)
_maxxvitv2("nano_rw", 256, _NANO, 96, 23_696_611, 6.26, ("sw_in1k",), **_V2_NANO)
_maxxvitv2("rmlp_base_rw", 224, (2, 6, 12, 2), 128, 116_092_512, 24.20, _12K, stem_dims=(64, 128))
_maxxvitv2("rmlp_base_rw", 384, (2, 6, 12, 2), 128, 116_092_512, 72.98, ("sw_in12k_ft_in1k",), stem_dims=(64, 128))
_maxxvitv2("rmlp_large_rw", 224, (2, 6, 16, 2), 160, 215_417_166, 44.14, ("",), **_V2_LARGE)
