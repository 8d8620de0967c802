"""LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference (Graham et al., 2021, arXiv:2104.01136).

Four strided convolutions make patches of 16x16, transformer stages of falling resolution do the rest, and an attention
whose queries are every second pixel leads from one to the next. Queries and keys are narrow, values wide, positions a
learned bias for the distance of query and key, and the norms are batch norms, which `reparameterize()` merges into the
linear maps before them. Two heads, one for the labels and one for a teacher's, are averaged in evaluation. Official
repository: facebookresearch/LeViT; compared here with timm's, to which its weights were ported. The `_conv` variants
are the same networks, whose weight files hold the linear maps as 1x1 convolutions.

As in the released code every block has the same drop-path rate, the MLP after a downsampling too.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import aggregate, attention_probabilities
from vision_jax.layers.block import MapBlock
from vision_jax.layers.conv import pair
from vision_jax.layers.conv_norm import ConvNorm, ConvNormMlp, ConvNormStem
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.norm_head import PooledNormHeads
from vision_jax.layers.relative_bias import DistanceBias
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import ones, zeros
from vision_jax.registry import check, register

ACTIVATIONS = {"hard_swish": jax.nn.hard_swish, "silu": jax.nn.silu}
STEMS = {8: (4, 2, 1), 16: (8, 4, 2, 1)}  # channels of the convolutions: the first stage's, divided by these
DOWN_RATIO = 4  # values to keys, in channels, where attention downsamples


@dataclasses.dataclass(frozen=True)
class LeViTConfig(ModelConfig):
    """A LeViT; a number a stage for `depths`, `embed_dims` and `num_heads`.

    Heads have queries and keys of `key_dim` channels and values of `value_ratio` times as many. `patch_size`: of the
    stem, 8 or 16; `distilled`: whether there is a head for a teacher's labels; `conv`: whether weight files hold the
    linear maps as convolutions.
    """

    depths: tuple = (4, 4, 4)
    embed_dims: tuple = (128, 256, 384)
    num_heads: tuple = (4, 8, 12)
    key_dim: int = 16
    value_ratio: int = 2
    mlp_ratio: float = 2.0
    patch_size: int = 16
    act: str = "hard_swish"
    distilled: bool = True
    conv: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims")
        heads = len(self.num_heads) == len(self.depths)
        check(heads, f"depths={self.depths} and num_heads={self.num_heads} differ in length")
        check(self.act in ACTIVATIONS, f"act={self.act!r}: one of {tuple(ACTIVATIONS)}")
        check(self.patch_size in STEMS, f"patch_size={self.patch_size}: one of {tuple(STEMS)}")
        smallest = min(self.embed_dims[:-1], default=self.key_dim)
        check(smallest >= self.key_dim, f"key_dim={self.key_dim}: at most {smallest}, for a head where it downsamples")


class DistanceAttention(nnx.Module):
    """Attention among all pixels with biases for their distances, [B, H, W, din] -> [B, H, W, dout].

    With `down` only every second pixel asks: [B, H/2, W/2, dout] (the paper's section 4.3).

    Args:
      c: the config.
      din, dout: channels in and out.
      num_heads, value_dim: of the heads.
      size: (H, W).
      down: ask at every second pixel only.
    """

    def __init__(self, c, din, dout, num_heads, value_dim, size, *, down=False):
        self.num_heads, self.key_dim, self.act = num_heads, c.key_dim, ACTIVATIONS[c.act]
        conv, parts = _conv(c), 1 if down else 2
        self.q = conv(din, num_heads * c.key_dim) if down else None
        self.qkv = conv(din, num_heads * (parts * c.key_dim + value_dim))  # with `down` keys and values alone
        self.bias = DistanceBias(num_heads, size, stride=2 if down else 1)
        self.proj = conv(num_heads * value_dim, dout, scale_init=ones if down else zeros)

    def __call__(self, x, train=None):
        B, H, W, _ = x.shape
        parts = self.qkv(x, train).reshape(B, H * W, self.num_heads, -1)
        *q, k, v = jnp.split(parts, [self.key_dim] if self.q else [self.key_dim, 2 * self.key_dim], axis=-1)
        if self.q:
            x = x[:, ::2, ::2]
            q = [self.q(x, train).reshape(B, -1, self.num_heads, self.key_dim)]
        probabilities = tap(self, "probabilities", attention_probabilities(*q, k, bias=self.bias()))
        return self.proj(self.act(aggregate(probabilities, v).reshape(*x.shape[:3], -1)), train)


class Downsample(nnx.Module):
    """Attention that halves the map, then an MLP beside a shortcut: [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, c, din, dout, size):
        self.attn_downsample = DistanceAttention(
            c, din, dout, din // c.key_dim, DOWN_RATIO * c.key_dim, size, down=True
        )  # fmt: skip
        self.mlp = Stack(lambda _: MapBlock(dout, attn=None, mlp=_mlp(c, dout, 2), dtype=c.dtype), (c.drop_path_rate,))

    def __call__(self, x, train=None):
        return self.mlp(self.attn_downsample(x, train), train)


def _conv(c):
    """What makes the linear maps, each with a batch norm."""
    return functools.partial(ConvNorm, pointwise=PointwiseConv if c.conv else Linear, dtype=c.dtype)


def _mlp(c, dim, ratio):
    kw = dict(act=ACTIVATIONS[c.act], pointwise=PointwiseConv if c.conv else Linear, dtype=c.dtype)
    return ConvNormMlp(dim, int(dim * ratio), scale_init=zeros, **kw)


class LeViT(StagedModel):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]; a pair of them, of two heads, while training."""

    classifier = ("head",)
    torch_ignore = (r"\.attention_bias_idxs$",)  # in files of timm's first releases
    torch_names: ClassVar = {
        "timm": (
            (r"^stem\.(\d)\.", lambda match: f"stem.conv{int(match[1]) + 1}."),
            (r"^head\.(head|head_dist)\.", r"\1."),
            (r"\.(conv|fc)\.(weight|bias)$", r".linear.\2"),
            (r"\.downsample\.mlp\.0\.", ".downsample."),
            (r"\.mlp\.fc(\d)\.", r".mlp.ln\1."),
            (r"\.bias\.attention_biases$", ".attention_biases"),
            (r"\.attn_downsample\.qkv\.", ".attn_downsample.kv."),
            (r"\.(q|proj)\.", r".\1.ln."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        dims = [c.embed_dims[0] // n for n in STEMS[c.patch_size]]
        self.stem = ConvNormStem(c.in_chans, dims, act=ACTIVATIONS[c.act], dtype=c.dtype)
        stages = []
        for i, (depth, dim) in enumerate(zip(c.depths, c.embed_dims, strict=True)):
            down = Downsample(c, c.embed_dims[i - 1], dim, self._size(i - 1)) if i else None
            block, rates = functools.partial(self._block, i), (c.drop_path_rate,) * depth
            stages.append(Stage(down, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
        self.stages = nnx.List(stages)
        self.head = PooledNormHeads(
            c.embed_dims[-1], c.num_classes, distilled=c.distilled, norm_drop=c.drop_rate, dtype=c.dtype
        )  # fmt: skip
        self.feature_info = tuple(
            FeatureInfo(f"stages.{i}", dim, c.patch_size * 2**i) for i, dim in enumerate(c.embed_dims)
        )

    def _size(self, stage):
        """(height, width) of a stage's map."""
        return tuple(-(-n // (self.config.patch_size * 2**stage)) for n in pair(self.config.img_size))

    def _block(self, stage, index):
        c, dim = self.config, self.config.embed_dims[stage]
        attn = DistanceAttention(c, dim, dim, c.num_heads[stage], c.value_ratio * c.key_dim, self._size(stage))
        return MapBlock(dim, attn=attn, mlp=_mlp(c, dim, c.mlp_ratio), dtype=c.dtype)

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        self.check_size(images)
        return self.stem(images, train)


def _levit(name, key_dim, embed_dims, num_heads, params, gmacs, tags=("",), **fields):
    for prefix, conv in (("levit", False), ("levit_conv", True)):
        config = LeViTConfig(embed_dims=embed_dims, num_heads=num_heads, key_dim=key_dim, conv=conv, **fields)
        register(
            f"{prefix}_{name}", LeViT, config, params=params, gmacs=gmacs, paper="2104.01136", licence="apache-2.0",
            tags=tags, crop_pct=0.9,
        )  # fmt: skip


_FB, _ONE = dict(tags=("fb_dist_in1k",)), dict(act="silu", distilled=False)
_levit("128s", 16, (128, 256, 384), (4, 6, 8), 7_777_058, 0.305, depths=(2, 3, 4), **_FB)
_levit("128", 16, (128, 256, 384), (4, 8, 12), 9_213_936, 0.406, **_FB)
_levit("192", 32, (192, 288, 384), (3, 5, 6), 10_947_069, 0.658, **_FB)
_levit("256", 32, (256, 384, 512), (4, 6, 8), 18_893_876, 1.12, **_FB)
_levit("384", 32, (384, 512, 768), (6, 9, 12), 39_128_836, 2.353, **_FB)
# timm's own, of which nobody published multiply-adds: they are counted
_levit("384_s8", 32, (384, 512, 768), (6, 9, 12), 39_118_960, 9.95, act="silu", patch_size=8)
_levit("512_s8", 64, (512, 640, 896), (8, 10, 14), 74_046_696, 21.77, patch_size=8, **_ONE)
_levit("512", 64, (512, 768, 1024), (8, 12, 16), 95_173_700, 5.62, **_ONE)
_levit("256d", 32, (256, 384, 512), (4, 6, 8), 26_210_788, 1.39, depths=(4, 8, 6), **_ONE)
_levit("512d", 64, (512, 640, 768), (8, 10, 12), 92_497_538, 5.84, depths=(4, 8, 6), **_ONE)
