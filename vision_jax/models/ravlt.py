"""RAVLT: Breaking the Low-Rank Dilemma of Linear Attention (Fan et al., 2025, arXiv:2411.07635).

Linear attention sums keys times values into a matrix of low rank. Rank-augmented linear attention weighs the tokens
that enter the sum by how well they fit the mean query (equations 7 and 8), and multiplies what is read by a gate of the
token itself (equation 9). A pyramid of blocks, each with a depthwise convolution for positions, the mixer, and a
feed-forward network with a depthwise convolution inside.

Official repository: qhfan/RALA, which states no licence; its weights are published as pickles. The paper's text builds
all stages of linear attention; the released code, and so this file, has softmax attention with the same gate in the
last two. There queries and keys are rotated by their positions; in linear attention only where values are summed, not
in the divisor, so that it stays positive.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.errors import unknown
from vision_jax.functional import tap
from vision_jax.kernels import linear_attention
from vision_jax.layers.attention import GatedQKV, aggregate, attention_probabilities
from vision_jax.layers.block import Block
from vision_jax.layers.conditional_position import ConditionalPosition
from vision_jax.layers.conv import Conv
from vision_jax.layers.conv_stem import ConvStem, sequential_names
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import BatchNorm, LayerNorm
from vision_jax.layers.rotary import axial_angles, axis_angles, rotate
from vision_jax.layers.scale import MapLayerScale
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages, stage_groups
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class RAVLTConfig(ModelConfig):
    """A RAVLT; a number a stage for depths, embed_dims, num_heads and layer_scale_init.

    `mixers`: "linear" or "softmax" for each stage; `projection`: channels before the classifier.
    """

    depths: tuple = (2, 2, 6, 2)
    embed_dims: tuple = (64, 128, 256, 512)
    num_heads: tuple = (1, 2, 4, 8)
    mixers: tuple = ("linear", "linear", "softmax", "softmax")
    mlp_ratio: float = 3.5
    layer_scale_init: tuple = (1.0, 1.0, 1.0, 1.0)
    projection: int = 1024
    drop_path_rate: float = 0.1
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads", "mixers", "layer_scale_init")
        for mixer in self.mixers:
            if mixer not in MIXERS:
                raise unknown("mixer", mixer, MIXERS)
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=True):
            given = f"embed_dims={self.embed_dims} and num_heads={self.num_heads}"
            check(dim % (4 * heads) == 0, f"{given}: heads of {dim // heads} channels are rotated four by four")


@functools.cache
def frequencies(head_dim):
    """Radians a token by which the pairs of channels of a half of a head turn, a tuple of head_dim / 4."""
    return tuple((10_000.0 ** -np.linspace(0, 1, head_dim // 4)).tolist())


class GatedAttention(nnx.Module):
    """What both mixers share: gate * (attention + local convolution of the values), [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, num_heads, *, dtype):
        self.qkvo = GatedQKV(dim, num_heads, dim // num_heads, dtype=dtype)
        self.lepe = Conv(dim, dim, 5, groups=dim, split=True, dtype=dtype)
        self.proj = PointwiseConv(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v, gate = self.qkvo(x)
        out = self.attend(q, k, v)
        return self.proj((out.reshape(x.shape) + self.lepe(v.reshape(x.shape))) * gate.reshape(x.shape))


def rank_augmented_attention(q, k, v, **options):
    """Queries, keys and values [B, H, W, heads, head_dim] -> the same shape; options of `linear_attention`."""
    tokens = q.shape[1] * q.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k = (jax.nn.elu(x.astype(wide)) + 1 for x in (q, k))
    scores = jnp.einsum("bhd,bxyhd->bxyhd", q.mean((1, 2)), k).sum(-1, keepdims=True) * q.shape[-1] ** -0.5
    k = k * (jax.nn.softmax(scores, axis=(1, 2)) * tokens)
    q, k = q.astype(v.dtype), k.astype(v.dtype)
    rotary = tuple(axis_angles(size, frequencies(q.shape[-1])) for size in q.shape[1:3])
    # the reference adds 1e-6 to the divisor's mean over the tokens, not to its sum
    return linear_attention(q, k, v, normalizer=True, rotary=rotary, epsilon=1e-6 * tokens, **options)


class RankAugmentedAttention(GatedAttention):
    """Linear attention whose keys are weighed by the softmax of their products with the mean query."""

    def attend(self, q, k, v):
        """Queries, keys and values [B, H, W, heads, head_dim] -> the same shape."""
        return rank_augmented_attention(q, k, v)


class SoftmaxAttention(GatedAttention):
    """Plain attention, of rotated queries and keys."""

    def attend(self, q, k, v):
        """Queries, keys and values [B, H, W, heads, head_dim] -> [B, N, heads, head_dim]."""
        angles = axial_angles(*q.shape[1:3], frequencies(q.shape[-1]))
        q, k, v = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (rotate(q, angles), rotate(k, angles), v))
        return aggregate(tap(self, "probabilities", attention_probabilities(q, k)), v)


MIXERS = {"linear": RankAugmentedAttention, "softmax": SoftmaxAttention}


class ConvMlp(nnx.Module):
    """A feed-forward network with a depthwise convolution beside the hidden features, [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, hidden, *, dtype):
        self.fc1, self.fc2 = PointwiseConv(dim, hidden, dtype=dtype), PointwiseConv(hidden, dim, dtype=dtype)
        self.dwconv = Conv(hidden, hidden, 3, groups=hidden, split=True, dtype=dtype)

    def __call__(self, x, train=None):
        x = gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class RAVLTBlock(Block):
    """Positions from a convolution, then the two residual branches, [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, *, dtype, **parts):
        super().__init__(dim, scale=MapLayerScale, dtype=dtype, **parts)
        self.pos = ConditionalPosition(dim, dtype=dtype)

    def __call__(self, x, train=None):
        return super().__call__(self.pos(x), train)


class PatchMerging(nnx.Module):
    """Halves a map by a convolution, [B, H, W, din] -> [B, ceil(H/2), ceil(W/2), dout]."""

    def __init__(self, din, dout, *, dtype):
        self.reduction = Conv(din, dout, 3, stride=2, dtype=dtype)
        self.norm = BatchNorm(dout, dtype=dtype)

    def __call__(self, x, train=None):
        return self.norm(self.reduction(x), train)


class Stage(nnx.Module):
    """Patch merging (None in the first stage), then blocks: [B, H, W, Cin] -> [B, H', W', C]."""

    def __init__(self, c, i, rates):
        dim, kw = c.embed_dims[i], dict(dtype=c.dtype)
        self.downsample = PatchMerging(c.embed_dims[i - 1], dim, **kw) if i else None

        def block(index):
            return RAVLTBlock(
                dim, attn=MIXERS[c.mixers[i]](dim, c.num_heads[i], **kw),
                mlp=ConvMlp(dim, int(c.mlp_ratio * dim), **kw), norm=functools.partial(LayerNorm, epsilon=1e-6, **kw),
                layer_scale=c.layer_scale_init[i], **kw,
            )  # fmt: skip

        self.blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)

    def __call__(self, x, train=None):
        return self.blocks(self.downsample(x, train) if self.downsample else x, train)


OFFICIAL = (
    *sequential_names("patch_embed", "patch_embed.proj"),
    # a merging is counted to the stage before it
    (r"^stages\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample"),
    (r"^stages\.", "layers."),
    (r"\.blocks\.(\d+)\.norm([12])\.", r".blocks.\1.norm\2.norm."),
    (r"\.pos\.proj\.", ".pos."),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.", ".ffn."),
)


class RAVLT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    torch_names: ClassVar = {"official": OFFICIAL}
    torch_ignore = (r"\.RoPE\.angle$",)  # the frequencies of the rotation

    def __init__(self, config):
        c = self.config = config
        dim, kw = c.embed_dims[0], dict(dtype=c.dtype)
        self.patch_embed = ConvStem(c.in_chans, (dim // 2,) * 3 + (dim,), (2, 1, 1, 2), act=gelu, **kw)
        rates = linear_rates(c.drop_path_rate, c.depths)
        self.stages = nnx.List([Stage(c, i, rates[i]) for i in range(len(c.depths))])
        self.proj = PointwiseConv(c.embed_dims[-1], c.projection, **kw)
        self.norm = BatchNorm(c.projection, **kw)
        self.head = PointwiseConv(c.projection, c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, projection]; pyramid=True: the maps after the stages."""
        maps = self.run_stages(self.patch_embed(images, train), train)
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        return jax.nn.silu(self.norm(self.proj(maps[-1]), train))

    def forward_head(self, x, train=None):
        """Map [B, H, W, projection] -> logits [B, num_classes], or pooled features [B, projection] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def torch_buffers(self):
        """What the authors' files hold beside the parameters: the frequencies of each stage, one a channel."""
        dims = [dim // heads for dim, heads in zip(self.config.embed_dims, self.config.num_heads, strict=True)]
        return {f"layers.{i}.RoPE.angle": np.repeat(frequencies(d), 2).astype(np.float32) for i, d in enumerate(dims)}

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^patch_embed")


def _ravlt(name, params, gmacs, **fields):
    register(
        name, RAVLT, RAVLTConfig(**fields), params=params, gmacs=gmacs, paper="2411.07635", licence="",
        reference="qhfan/RALA",
    )  # fmt: skip


_ravlt("ravlt_tiny", 14_897_768, 2.4)
_ravlt(
    "ravlt_small", 25_591_208, 4.6, depths=(3, 5, 9, 3), embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8),
    drop_path_rate=0.15,
)  # fmt: skip
_ravlt(
    "ravlt_base", 48_241_288, 9.9, depths=(4, 6, 12, 6), embed_dims=(96, 192, 384, 512), num_heads=(1, 2, 6, 8),
    layer_scale_init=(1.0, 1.0, 1e-6, 1e-6), drop_path_rate=0.4,
)  # fmt: skip
_ravlt(
    "ravlt_large", 95_242_440, 16.0, depths=(4, 7, 19, 8), embed_dims=(96, 192, 448, 640), num_heads=(1, 2, 7, 10),
    layer_scale_init=(1e-6,) * 4, drop_path_rate=0.55,
)  # fmt: skip
