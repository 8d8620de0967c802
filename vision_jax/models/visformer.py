"""Visformer: The Vision-friendly Transformer (Chen et al., 2021, arXiv:2104.12533).

What is left of a ViT after a walk, step by step, to a convolutional network and back: three stages, batch norms,
grouped 3x3 convolutions instead of attention where the map is large, global attention in the two others. Official
repository: danczs/Visformer; compared here with timm's.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import Attention, ConvQKV
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import BatchNorm, normalise
from vision_jax.layers.position_map import PositionMap
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import VarianceScaling, kaiming_normal
from vision_jax.registry import check, register

_POINTWISE = functools.partial(PointwiseConv, init=kaiming_normal)


@dataclasses.dataclass(frozen=True)
class VisformerConfig(ModelConfig):
    """A Visformer; a number a stage. A stage with 0 heads has convolutions of `groups` groups in its MLPs instead."""

    stem_dim: int = 32
    depths: tuple = (7, 4, 4)
    embed_dims: tuple = (192, 384, 768)
    num_heads: tuple = (0, 6, 6)
    mlp_ratio: float = 4.0
    groups: int = 8
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims")
        heads = len(self.num_heads) == len(self.depths)
        check(heads, f"depths={self.depths} and num_heads={self.num_heads} differ in length")
        fits = all(dim % (n or self.groups) == 0 for dim, n in zip(self.embed_dims, self.num_heads, strict=True))
        check(
            fits,
            f"embed_dims={self.embed_dims} must be multiples of num_heads={self.num_heads} or groups={self.groups}",
        )
        check(min(pair(self.img_size)) >= 8 * 2 ** (len(self.depths) - 1), f"img_size={self.img_size} is too small")


class ConvMlp(nnx.Module):
    """Two 1x1 convolutions, perhaps a grouped one of 3x3 between, GELUs, [B, H, W, C] -> [B, H, W, C]; no biases."""

    def __init__(self, dim, hidden, *, groups=None, dtype):
        # torch's fan-out does not know of groups
        grouped = dict(groups=groups, split=True, init=VarianceScaling(2 / (groups or 1), "fan_out"))
        self.fc1 = _POINTWISE(dim, hidden, bias=False, dtype=dtype)
        self.conv = Conv(hidden, hidden, 3, bias=False, **grouped, dtype=dtype) if groups else None
        self.fc2 = _POINTWISE(hidden, dim, bias=False, dtype=dtype)

    def __call__(self, x, train=None):
        x = gelu(self.fc1(x))
        return self.fc2(gelu(self.conv(x)) if self.conv else x)


class ConvBlock(nnx.Module):
    """x + drop_path(mlp(norm(x))), [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, *, norm, mlp):
        self.norm2, self.mlp = norm(dim), mlp

    def __call__(self, x, train=None):
        x = x + drop_path(tap(self, "mlp", self.mlp(normalise(self.norm2, x, train), train)), train)
        return tap(self, "output", constrain_batch(x))


class Patches(nnx.Module):
    """Patches of a map, normalised, with learned positions: [B, H, W, din] -> [B, H/p, W/p, dim]."""

    def __init__(self, din, dim, patch_size, grid, *, dtype):
        self.conv = Conv(din, dim, patch_size, stride=patch_size, padding=0, init=kaiming_normal, dtype=dtype)
        self.bn = BatchNorm(dim, dtype=dtype)
        self.position = PositionMap(grid, dim)

    def __call__(self, x, train=None):
        return self.position(self.bn(self.conv(x), train))


def _numbered(pattern, name):
    """A rename from stages counted from 0 to names that end in a count from 1."""
    return (pattern, lambda match: f"{name}{int(match[1]) + 1}")


class Visformer(StagedModel):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {
        "timm": (
            (r"^stem\.conv\.", "stem.0."),
            (r"^stem\.bn\.", "stem.1."),
            _numbered(r"^stages\.(\d)\.downsample\.position\.table", "pos_embed"),
            (r"^(stages\.\d\.downsample\.)conv\.", r"\1proj."),
            (r"^(stages\.\d\.downsample\.)bn\.", r"\1norm."),
            _numbered(r"^stages\.(\d)\.downsample", "patch_embed"),
            _numbered(r"^stages\.(\d)\.blocks", "stage"),
            (r"\.mlp\.conv\.", ".mlp.conv2."),
            (r"\.mlp\.fc1\.", ".mlp.conv1."),
            (r"\.mlp\.fc2\.", ".mlp.conv3."),
            (r"^norm_pre\.", "norm."),
            (r"^head\.fc\.", "head."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(BatchNorm, dtype=c.dtype)
        self.stem = ConvNorm(c.in_chans, c.stem_dim, 7, stride=2, act=jax.nn.relu, init=kaiming_normal, **kw)
        din, grid, stages = c.stem_dim, tuple(-(-n // 2) for n in pair(c.img_size)), []
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            patch = 2 if i else 4
            grid = tuple(n // patch for n in grid)
            down = Patches(din, c.embed_dims[i], patch, grid, **kw)
            block = functools.partial(self._block, c.embed_dims[i], c.num_heads[i], norm)
            stages.append(Stage(down, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
            din = c.embed_dims[i]
        self.stages = nnx.List(stages)
        self.norm_pre = norm(din)
        self.head = PooledHead(din, c.num_classes, drop=c.drop_rate, **kw)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 8 * 2**i) for i, dim in enumerate(c.embed_dims))

    def _block(self, dim, heads, norm, index):
        c, kw = self.config, dict(dtype=self.config.dtype)
        if not heads:
            return ConvBlock(dim, norm=norm, mlp=ConvMlp(dim, 2 * dim, groups=c.groups, **kw))
        qkv = functools.partial(ConvQKV, init=kaiming_normal)
        attn = Attention(dim, heads, qkv_bias=False, proj_bias=False, qkv=qkv, linear=_POINTWISE, **kw)
        return Block(dim, attn=attn, mlp=ConvMlp(dim, int(dim * c.mlp_ratio), **kw), norm=norm, **kw)

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        self.check_size(images)
        return self.stem(images, train)


def _visformer(size, params, gmacs, **fields):
    register(
        f"visformer_{size}", Visformer, VisformerConfig(**fields), params=params, gmacs=gmacs, paper="2104.12533",
        licence="apache-2.0", tags=("in1k",), crop_pct=0.9,
    )  # fmt: skip


_visformer("tiny", 10_321_368, 1.27, stem_dim=16, embed_dims=(96, 192, 384), num_heads=(0, 3, 3))
_visformer("small", 40_219_592, 4.88)
