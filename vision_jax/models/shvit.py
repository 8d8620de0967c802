"""SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design (Yun & Ro, 2024, arXiv:2401.16456).

Heads repeat each other, so there is one, and it sees a slice of the channels; the others pass it by and meet the result
in the projection that follows. Patches of 16x16 from a stem of four convolutions keep the maps small, three stages do
the rest, and the norms are batch norms, which `reparameterize()` merges into the convolutions. Official repository:
ysj9909/SHViT; compared here with timm's, to which its weights were ported.

Neither has stochastic depth; here `drop_path_rate` grows linearly over the blocks, as in other families.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import aggregate, attention_probabilities
from vision_jax.layers.conv_norm import ConvNorm, ConvNormMlp, ConvNormStem
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.norm_head import NormHead
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import zeros
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class SHViTConfig(ModelConfig):
    """A SHViT; a number a stage for `depths`, `embed_dims`, `attention_dims` and `attend`.

    `attention_dims`: channels that attention sees; `qk_dim`: of its queries and keys; `attend`: whether the stage has
    attention at all.
    """

    depths: tuple = (2, 4, 5)
    embed_dims: tuple = (128, 224, 320)
    attention_dims: tuple = (32, 48, 68)
    qk_dim: int = 16
    attend: tuple = (False, True, True)
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "attention_dims", "attend")
        check(self.embed_dims[0] % 8 == 0, f"embed_dims={self.embed_dims}: the first must be a multiple of 8")
        for dim, part in zip(self.embed_dims, self.attention_dims, strict=True):
            check(0 < part <= dim, f"attention_dims={self.attention_dims}: 1 to embed_dims={self.embed_dims}")


class SingleHeadAttention(nnx.Module):
    """Attention among all pixels, of the first `part` channels: [B, H, W, C] -> [B, H, W, C] (the paper's SHSA)."""

    def __init__(self, dim, part, qk_dim, *, dtype):
        self.part, self.qk_dim = part, qk_dim
        self.pre_norm = GroupNorm(part, epsilon=1e-5, dtype=dtype)
        self.qkv = ConvNorm(part, 2 * qk_dim + part, dtype=dtype)
        self.proj = ConvNorm(dim, dim, scale_init=zeros, dtype=dtype)

    def __call__(self, x, train=None):
        B, H, W, _ = x.shape
        seen, rest = jnp.split(x, [self.part], axis=-1)
        qkv = self.qkv(self.pre_norm(seen), train).reshape(B, H * W, 1, -1)
        q, k, v = jnp.split(qkv, [self.qk_dim, 2 * self.qk_dim], axis=-1)
        probabilities = tap(self, "probabilities", attention_probabilities(q, k))
        seen = aggregate(probabilities, v).reshape(B, H, W, self.part)
        return self.proj(jax.nn.relu(jnp.concatenate([seen, rest], axis=-1)), train)


class SHViTBlock(nnx.Module):
    """Depthwise convolution, attention, MLP, each beside a shortcut: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, stage):
        dim, part, kw = c.embed_dims[stage], c.attention_dims[stage], dict(dtype=c.dtype)
        self.conv = ConvNorm(dim, dim, 3, groups=dim, residual=True, scale_init=zeros, **kw)
        self.mixer = SingleHeadAttention(dim, part, c.qk_dim, **kw) if c.attend[stage] else None
        self.ffn = ConvNormMlp(dim, 2 * dim, act=jax.nn.relu, scale_init=zeros, **kw)

    def __call__(self, x, train=None):
        x = self.conv(x, train)
        if self.mixer:
            x = x + drop_path(tap(self, "mixer", self.mixer(x, train)), train)
        return tap(self, "output", constrain_batch(x + drop_path(self.ffn(x, train), train)))


class PatchMerging(nnx.Module):
    """An inverted bottleneck with squeeze-and-excitation, [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, dtype):
        hidden, kw = 4 * din, dict(dtype=dtype)
        self.conv1 = ConvNorm(din, hidden, act=jax.nn.relu, **kw)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, act=jax.nn.relu, **kw)
        self.se = SqueezeExcite(hidden, max(8, (din + 4) // 8 * 8), **kw)
        self.conv3 = ConvNorm(hidden, dout, **kw)

    def __call__(self, x, train=None):
        return self.conv3(self.se(self.conv2(self.conv1(x, train), train)), train)


class Downsample(nnx.Module):
    """Patch merging between two rounds of depthwise convolution and MLP, [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, dtype):
        self.merge = PatchMerging(din, dout, dtype=dtype)
        self.conv1, self.conv2 = (ConvNorm(n, n, 3, groups=n, residual=True, dtype=dtype) for n in (din, dout))
        self.ffn1, self.ffn2 = (
            ConvNormMlp(n, 2 * n, act=jax.nn.relu, scale_init=zeros, dtype=dtype) for n in (din, dout)
        )

    def __call__(self, x, train=None):
        x = self.conv1(x, train)
        x = self.conv2(self.merge(x + self.ffn1(x, train), train), train)
        return x + self.ffn2(x, train)


class SHViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    torch_names: ClassVar = {
        "timm": (
            (r"\.conv\.(weight|bias)$", r".c.\1"),
            (r"^stem\.(\d)\.", lambda match: f"patch_embed.{2 * int(match[1])}."),  # the ReLUs count
            (r"^head\.fc\.", "head.l."),
            (r"\.fc(\d)\.", r".pw\1."),
            (r"\.proj\.", ".proj.1."),
            (r"(blocks\.\d+\.(conv|mixer|ffn))\.", r"\1.m."),
            *(
                (rf"downsample\.{ours}\.", f"downsample.{theirs}.")
                for ours, theirs in (("conv1", "0.m"), ("ffn1", "1.m"), ("merge", 2), ("conv2", "3.m"), ("ffn2", "4.m"))
            ),
            (r"\.se\.pw", ".se.fc"),
        )
    }

    def __init__(self, config):
        c = self.config = config
        dims = [c.embed_dims[0] // n for n in (8, 4, 2, 1)]
        self.stem = ConvNormStem(c.in_chans, dims, act=jax.nn.relu, dtype=c.dtype)
        stages, din = [], c.embed_dims[0]
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            down = Downsample(din, dim, dtype=c.dtype) if i else None
            blocks = Stack(lambda _, stage=i: SHViTBlock(c, stage), rates, scan=c.scan_blocks, remat=c.remat)
            stages.append(Stage(down, blocks))
            din = dim
        self.stages = nnx.List(stages)
        self.head = NormHead(din, c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 16 * 2**i) for i, dim in enumerate(c.embed_dims))

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        return self.stem(images, train)

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean((1, 2)), self.config.drop_rate, train)
        return self.head(x, train) if self.head else x


def _shvit(name, depths, embed_dims, attention_dims, params, gmacs, img_size=224):
    register(
        f"shvit_{name}", SHViT,
        SHViTConfig(img_size=img_size, depths=depths, embed_dims=embed_dims, attention_dims=attention_dims),
        params=params, gmacs=gmacs, paper="2401.16456", licence="mit", tags=("in1k",),
    )  # fmt: skip


_shvit("s1", (2, 4, 5), (128, 224, 320), (32, 48, 68), 6_330_808, 0.24)
_shvit("s2", (2, 4, 5), (128, 308, 448), (32, 66, 96), 11_483_072, 0.37)
_shvit("s3", (3, 5, 5), (192, 352, 448), (48, 75, 96), 14_245_273, 0.60)
_shvit("s4", (4, 7, 6), (224, 336, 448), (48, 72, 96), 16_588_484, 0.99, img_size=256)
