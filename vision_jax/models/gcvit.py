"""GC ViT: Global Context Vision Transformers (Hatamizadeh et al., 2022, arXiv:2206.09959).

Blocks take turns: one attends inside windows; in the next the windows' keys and values are asked by queries that all
windows share, made of the whole map by convolutions and pooling once a stage. So global context costs no more than a
window. Convolutions with squeeze-and-excitation, without norms, shrink the maps. Official repository: NVlabs/GCVit;
compared here with timm's, to which its weights were ported.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.kernels import window_attention
from vision_jax.layers.attention import KV, QKV
from vision_jax.layers.block import Block
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.pooling import max_pool
from vision_jax.layers.relative_bias import RelativeBias
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, StagedModel, check_stages
from vision_jax.parameters import torch_default
from vision_jax.registry import check, register

_INIT = dict(init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class GCViTConfig(ModelConfig):
    """A GC ViT; a number a stage for `depths`, `num_heads` and `window_ratios`: a window is image size / ratio tokens.

    `embed_dim` doubles from stage to stage.
    """

    depths: tuple = (3, 4, 19, 5)
    embed_dim: int = 64
    num_heads: tuple = (2, 4, 8, 16)
    window_ratios: tuple = (32, 32, 16, 32)
    mlp_ratio: float = 3.0
    layer_scale_init: float | None = None
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads", "window_ratios")
        for i, ratio in enumerate(self.window_ratios):
            step = 4 * 2**i
            fits = ratio % step == 0 and (ratio // step).bit_count() == 1
            check(fits, f"window_ratios={self.window_ratios}: stage {i} takes {step} times a power of two")
        most = max(self.window_ratios)
        fits = all(side % most == 0 for side in pair(self.img_size))
        check(fits, f"img_size={self.img_size} must be a multiple of {most}, the largest of window_ratios")

    @property
    def embed_dims(self):
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


class ConvBlock(nnx.Module):
    """x + project(SE(gelu(depthwise(x)))), [B, H, W, C] -> [B, H, W, C] (the paper's Fused-MBConv)."""

    def __init__(self, dim, *, dtype):
        kw = dict(bias=False, init=torch_default, dtype=dtype)
        self.conv_dw = Conv(dim, dim, 3, groups=dim, **kw)
        self.se = SqueezeExcite(dim, round_channels(dim / 4, limit=0), act=gelu, **kw)
        self.conv_pw = PointwiseConv(dim, dim, **kw)

    def __call__(self, x):
        return x + self.conv_pw(self.se(gelu(self.conv_dw(x))))


class Downsample(nnx.Module):
    """Halves a map, [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, norm, dtype):
        self.norm1, self.conv_block = norm(din), ConvBlock(din, dtype=dtype)
        self.reduction = Conv(din, dout, 3, stride=2, bias=False, init=torch_default, dtype=dtype)
        self.norm2 = norm(dout)

    def __call__(self, x):
        return self.norm2(self.reduction(self.conv_block(self.norm1(x))))


class Stem(nnx.Module):
    """Two strided convolutions, images [B, H, W, C] -> [B, H/4, W/4, dim]."""

    def __init__(self, channels, dim, *, norm, dtype):
        self.conv1 = Conv(channels, dim, 3, stride=2, **_INIT, dtype=dtype)
        self.down = Downsample(dim, dim, norm=norm, dtype=dtype)

    def __call__(self, x):
        return self.down(self.conv1(x))


class GlobalQueries(nnx.Module):
    """The map shrunk to one window, [B, H, W, C] -> [B, h, w, C]: halved `levels` times."""

    def __init__(self, dim, levels, *, dtype):
        self.levels = levels
        self.blocks = nnx.List([ConvBlock(dim, dtype=dtype) for _ in range(max(levels, 1))])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
            x = max_pool(x, 3, stride=2, padding=1) if self.levels else x
        return constrain_batch(x)  # the heads, which devices share, are not to split the convolutions


class WindowAttention(nnx.Module):
    """Attention inside windows with relative position bias, asked by themselves or by shared queries."""

    def __init__(self, c, dim, heads, window, *, shared):
        kw = dict(**_INIT, dtype=c.dtype)
        self.window, self.heads, self.drop = window, heads, c.proj_drop_rate
        self.qkv = None if shared else QKV(dim, heads, dim // heads, **kw)
        self.kv = KV(dim, heads, dim // heads, **kw) if shared else None
        self.rel_pos = RelativeBias(heads, window)
        self.proj = Linear(dim, dim, **kw)

    def __call__(self, x, train, queries):
        """x [B, H, W, C], the window's queries [B, h, w, C] -> [B, H, W, C]."""
        if self.kv:
            q, (k, v) = queries.reshape(*queries.shape[:-1], self.heads, -1), self.kv(x)
        else:
            q, k, v = self.qkv(x)
        out = window_attention(q, k, v, window_size=self.window, bias=self.rel_pos())
        return dropout(self.proj(out.reshape(x.shape)), self.drop, train)


class Stage(nnx.Module):
    """The way down, or None, the queries, blocks that take turns, and after the last stage a norm."""

    def __init__(self, c, i, rates, *, norm):
        dim, heads = c.embed_dims[i], c.num_heads[i]
        self.downsample = Downsample(c.embed_dims[i - 1], dim, norm=norm, dtype=c.dtype) if i else None
        levels = (c.window_ratios[i] // (4 * 2**i)).bit_length() - 1
        self.global_block = GlobalQueries(dim, levels, dtype=c.dtype)
        window = tuple(side // c.window_ratios[i] for side in pair(c.img_size))
        linear = functools.partial(Linear, **_INIT)

        def block(index):
            attn = WindowAttention(c, dim, heads, window, shared=index % 2 == 1)
            mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, linear=linear, dtype=c.dtype)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, dtype=c.dtype)

        self.blocks = Stack(block, rates, period=2, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(dim) if i == len(c.depths) - 1 else None

    def __call__(self, x, train=None):
        x = self.downsample(x) if self.downsample else x
        x = self.blocks(x, train, self.global_block(x))
        return self.norm(x) if self.norm else x


class GCViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; the last map of a pyramid is normalised."""

    classifier = ("head.fc",)
    inert = (r"attn\.qkv\.bias\[1\]$", r"attn\.kv\.bias\[0\]$")  # one number is added to all scores of a query
    torch_names: ClassVar = {
        "timm": (
            (r"\.attn\.kv\.", ".attn.qkv."),
            (r"\.global_block\.blocks\.(\d+)\.", lambda match: f".global_block.blocks.conv{int(match[1]) + 1}."),
        )
    }
    torch_ignore = (r"\.relative_position_index$",)

    def __init__(self, config):
        c = self.config = config
        norm = functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        self.stem = Stem(c.in_chans, c.embed_dim, norm=norm, dtype=c.dtype)
        rates = linear_rates(c.drop_path_rate, c.depths)
        self.stages = nnx.List([Stage(c, i, rates[i], norm=norm) for i in range(len(c.depths))])
        classifier = functools.partial(Linear, **_INIT)
        self.head = PooledHead(c.embed_dims[-1], c.num_classes, drop=c.drop_rate, classifier=classifier, dtype=c.dtype)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C]; pyramid=True: the maps after the stages in `out_indices`."""
        self.check_size(images)
        return super().forward_features(images, train, pyramid, out_indices)


_URL = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit"


def _gcvit(name, file, params, gmacs, **fields):
    register(
        f"gcvit_{name}", GCViT, GCViTConfig(**fields), params=params, gmacs=gmacs, paper="2206.09959",
        licence="apache-2.0", hub="", tags={"in1k": dict(url=f"{_URL}/gcvit_{name}_224_nvidia-{file}.pth")},
    )  # fmt: skip


_gcvit("xxtiny", "d1d86009", 11_995_428, 2.1, depths=(2, 2, 6, 2))
_gcvit("xtiny", "274b92b7", 19_981_294, 2.6, depths=(3, 4, 6, 5))
_gcvit("tiny", "ac783954", 28_221_974, 4.7)
_WIDE = dict(mlp_ratio=2.0, layer_scale_init=1e-5)
_gcvit("small", "4e98afa2", 51_092_173, 8.5, embed_dim=96, num_heads=(3, 6, 12, 24), **_WIDE)
_gcvit("base", "f009139b", 90_320_836, 14.8, embed_dim=128, num_heads=(4, 8, 16, 32), **_WIDE)
