"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers (Wu et al., 2022, arXiv:2207.10666).

A Swin-like hierarchy contracted to a few million parameters, for distillation while pretraining: inverted bottlenecks
in the first stage, then attention in windows that are not shifted, with a learned bias for the distance of query and
key, and a depthwise convolution between attention and MLP that connects the windows. The batch norms of convolutions
merge into them for deployment (`reparameterize()`). Official repository: microsoft/Cream (TinyViT); compared here with
timm's, to which its weights were ported.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.functional import tap
from vision_jax.kernels import window_attention
from vision_jax.layers.attention import WideQKV
from vision_jax.layers.conv import pair
from vision_jax.layers.conv_norm import ConvNorm, ConvNormMlp, ConvNormStem
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.relative_bias import DistanceBias
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import crop_windows, pad_to_windows
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import zeros
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class TinyViTConfig(ModelConfig):
    """A TinyViT; a number a stage for `depths`, `embed_dims`, `num_heads` and `window_sizes`.

    The first stage has no attention: its `num_heads` and `window_sizes` count for nothing. `conv_ratio`: hidden
    channels of its bottlenecks to the others.
    """

    depths: tuple = (2, 2, 6, 2)
    embed_dims: tuple = (64, 128, 160, 320)
    num_heads: tuple = (2, 4, 5, 10)
    window_sizes: tuple = (7, 7, 14, 7)
    mlp_ratio: float = 4.0
    conv_ratio: float = 4.0
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads", "window_sizes")
        check(self.embed_dims[0] % 2 == 0, f"embed_dims={self.embed_dims}: the first must be even")


class DistanceWindowAttention(nnx.Module):
    """Attention in windows with biases for distances, [B, H, W, C] -> [B, H, W, C]; its norm sees the padding too."""

    def __init__(self, dim, num_heads, window_size, *, dtype):
        self.window_size, head_dim = pair(window_size), dim // num_heads
        self.norm = LayerNorm(dim, epsilon=1e-5, dtype=dtype)
        self.qkv = WideQKV(dim, num_heads, head_dim, head_dim, dtype=dtype)
        self.bias = DistanceBias(num_heads, self.window_size)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(self.norm(pad_to_windows(x, self.window_size, (0, 0))))
        out = window_attention(q, k, v, window_size=self.window_size, bias=self.bias())
        return self.proj(crop_windows(out, x.shape[1:3], (0, 0)).reshape(x.shape))


class ConvBlock(nnx.Module):
    """act(x + mlp(x)), the MLP an inverted bottleneck: [B, H, W, C] -> [B, H, W, C] (the paper's MBConv)."""

    def __init__(self, c, dim):
        hidden = int(dim * c.conv_ratio)
        self.mlp = ConvNormMlp(dim, hidden, act=gelu, depthwise=True, scale_init=zeros, dtype=c.dtype)

    def __call__(self, x, train=None):
        return tap(self, "output", constrain_batch(gelu(x + drop_path(self.mlp(x, train), train))))


class TinyViTBlock(nnx.Module):
    """Attention in windows, a depthwise convolution that connects them, an MLP: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, stage):
        dim, kw = c.embed_dims[stage], dict(dtype=c.dtype)
        self.attn = DistanceWindowAttention(dim, c.num_heads[stage], c.window_sizes[stage], **kw)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim, **kw)
        self.norm = LayerNorm(dim, epsilon=1e-5, **kw)
        self.mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, **kw)

    def __call__(self, x, train=None):
        x = self.local_conv(x + drop_path(tap(self, "attn", self.attn(x, train)), train), train)
        x = x + drop_path(tap(self, "mlp", self.mlp(self.norm(x), train)), train)
        return tap(self, "output", constrain_batch(x))


class PatchMerging(nnx.Module):
    """A strided depthwise convolution between two pointwise ones, [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, dtype):
        self.conv1 = ConvNorm(din, dout, act=gelu, dtype=dtype)
        self.conv2 = ConvNorm(dout, dout, 3, stride=2, groups=dout, act=gelu, dtype=dtype)
        self.conv3 = ConvNorm(dout, dout, dtype=dtype)

    def __call__(self, x, train=None):
        return self.conv3(self.conv2(self.conv1(x, train), train), train)


class TinyViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)
    torch_ignore = (r"\.attention_bias_idxs$",)  # in files of timm's first releases
    torch_names: ClassVar = {
        "timm": (
            (r"^stem\.(\d)\.", lambda match: f"patch_embed.conv{int(match[1]) + 1}."),
            (r"^(stages\.0\.blocks\.\d+)\.mlp\.(fc1|mid|fc2)\.", lambda m: f"{m[1]}.conv{_ORDER[m[2]]}."),
            (r"(blocks\.\d+)\.norm\.", r"\1.mlp.norm."),
            (r"\.bias\.attention_biases$", ".attention_biases"),
        )
    }

    def __init__(self, config):
        c = self.config = config
        stages, dims, kw = [], c.embed_dims, dict(dtype=c.dtype)
        self.stem = ConvNormStem(c.in_chans, (dims[0] // 2, dims[0]), act=gelu, **kw)
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            down = PatchMerging(dims[i - 1], dims[i], **kw) if i else None
            block = functools.partial(self._block, i)
            stages.append(Stage(down, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
        self.stages = nnx.List(stages)
        norm = functools.partial(LayerNorm, epsilon=1e-5, **kw)
        self.head = PooledHead(dims[-1], c.num_classes, norm=norm, drop=c.drop_rate, **kw)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(dims))

    def _block(self, stage, index):
        return TinyViTBlock(self.config, stage) if stage else ConvBlock(self.config, self.config.embed_dims[0])

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        return self.stem(images, train)


_ORDER = {"fc1": 1, "mid": 2, "fc2": 3}


def _tiny_vit(name, embed_dims, head_dim, params, gmacs, tags, img_size=224, window=7, crop_pct=0.95, **fields):
    register(
        f"tiny_vit_{name}_{img_size}", TinyViT,
        TinyViTConfig(
            img_size=img_size, embed_dims=embed_dims, num_heads=tuple(dim // head_dim for dim in embed_dims),
            window_sizes=(window, window, 2 * window, window), **fields,
        ),
        params=params, gmacs=gmacs, paper="2207.10666", licence="apache-2.0", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_22K = 21841
_ALL = {"dist_in22k": {}, "dist_in22k_ft_in1k": dict(num_classes=1000), "in1k": dict(num_classes=1000)}
_FINE = {"dist_in22k_ft_in1k": {}}
_21M = (96, 192, 384, 576)
_tiny_vit("5m", (64, 128, 160, 320), 32, 12_082_725, 1.3, _ALL, num_classes=_22K)
_tiny_vit("11m", (64, 128, 256, 448), 32, 20_354_581, 2.0, _ALL, drop_path_rate=0.1, num_classes=_22K)
_tiny_vit("21m", _21M, 32, 33_223_825, 4.3, _ALL, drop_path_rate=0.2, num_classes=_22K)
_tiny_vit("21m", _21M, 32, 21_230_488, 13.8, _FINE, img_size=384, window=12, crop_pct=1.0, drop_path_rate=0.1)
_SQUASH = {"dist_in22k_ft_in1k": dict(crop_mode="squash")}
_tiny_vit("21m", _21M, 32, 21_268_120, 27.0, _SQUASH, img_size=512, window=16, crop_pct=1.0, drop_path_rate=0.1)
