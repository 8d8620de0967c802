"""PiT: Rethinking Spatial Dimensions of Vision Transformers (Heo et al., 2021, arXiv:2103.16302).

A ViT whose map shrinks: between three runs of blocks a depthwise convolution of stride 2 halves the map and doubles the
channels, a linear map takes the class token along. The patches of the embedding overlap. Official repository:
naver-ai/pit; compared here with timm's. As released linear layers start as torch's do, not as ViT's.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.attention import QKV, Attention
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.position_map import PositionMap
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import check, register

_INIT = dict(init=torch_default, bias_init=torch_default)
_LINEAR = functools.partial(Linear, **_INIT)


@dataclasses.dataclass(frozen=True)
class PiTConfig(ModelConfig):
    """A PiT: a number a stage for depths and heads, each of `head_dim` channels; patches lie `patch_stride` apart.

    `distilled`: a second token and head, for a teacher's labels (DeiT).
    """

    patch_size: int = 16
    patch_stride: int = 8
    depths: tuple = (2, 6, 4)
    num_heads: tuple = (2, 4, 8)
    head_dim: int = 48
    mlp_ratio: float = 4.0
    distilled: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        same = len(self.depths) == len(self.num_heads)
        check(same, f"depths={self.depths} and num_heads={self.num_heads} differ in length")
        fits = all(b % a == 0 for a, b in zip(self.num_heads, self.num_heads[1:], strict=False))
        check(fits, f"num_heads={self.num_heads}: each must be a multiple of the one before")
        large = min(pair(self.img_size)) >= self.patch_size
        check(large, f"img_size={self.img_size} is smaller than patch_size={self.patch_size}")

    @property
    def grid(self):
        """(height, width) of the first map."""
        return tuple((n - self.patch_size) // self.patch_stride + 1 for n in pair(self.img_size))


class Pool(nnx.Module):
    """The way down: map [B, H, W, din] and tokens [B, T, din] -> [B, H/2, W/2, dout] and [B, T, dout]."""

    def __init__(self, din, dout, *, dtype):
        self.conv = Conv(din, dout, 3, stride=2, groups=din, **_INIT, dtype=dtype)
        self.fc = _LINEAR(din, dout, dtype=dtype)

    def __call__(self, x, tokens):
        return self.conv(x), self.fc(tokens)


class PiTStage(nnx.Module):
    """The way down, or None, then blocks of patches and tokens together: (map, tokens) -> (map, tokens)."""

    def __init__(self, pool, blocks):
        self.pool, self.blocks = pool, blocks

    def __call__(self, x, tokens, train=None):
        x, tokens = self.pool(x, tokens) if self.pool else (x, tokens)
        shape, count = x.shape, tokens.shape[1]
        x = jnp.concatenate([tokens, x.reshape(shape[0], -1, shape[-1])], axis=1)
        x = self.blocks(x, train)
        return x[:, count:].reshape(shape), x[:, :count]


_TIMM = (
    (r"^patch_embed\.proj\.", "patch_embed.conv."),
    (r"^pos_embed\.table$", "pos_embed"),
    (r"^stages\.", "transformers."),
)


class PiT(Model):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]; a pair of them in training, where distilled."""

    classifier = ("head", "head_dist")
    inert = (r"attn\.qkv\.bias\[1\]$",)  # what is added to every key adds one number to all scores of a query
    torch_names: ClassVar = {
        "timm": _TIMM,
        "official": (*_TIMM, (r"^transformers\.(\d)\.pool\.", lambda match: f"pools.{int(match[1]) - 1}.")),
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        dims, self.grid, stages = tuple(c.head_dim * n for n in c.num_heads), c.grid, []
        self.patch_embed = PatchEmbed(c.in_chans, dims[0], c.patch_size, stride=c.patch_stride, **kw)
        self.pos_embed = PositionMap(self.grid, dims[0])
        self.cls_token = param((1, 1 + c.distilled, dims[0]), trunc_normal)
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):

            def block(index, dim=dims[i], heads=c.num_heads[i]):
                attn = Attention(dim, heads, qkv=functools.partial(QKV, **_INIT), linear=_LINEAR, **kw)
                mlp = Mlp(dim, int(dim * c.mlp_ratio), linear=_LINEAR, **kw)
                return Block(dim, attn=attn, mlp=mlp, norm=norm, **kw)

            if i:
                self.grid = tuple(-(-n // 2) for n in self.grid)
            pool = Pool(dims[i - 1], dims[i], **kw) if i else None
            stages.append(PiTStage(pool, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
        self.stages = nnx.List(stages)
        self.norm = norm(dims[-1])
        self.head = _LINEAR(dims[-1], c.num_classes, **kw) if c.num_classes else None
        self.head_dist = _LINEAR(dims[-1], c.num_classes, **kw) if c.num_classes and c.distilled else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, c.patch_stride * 2**i) for i, dim in enumerate(dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, T + N, C], normalised: the class token, DeiT's second, the last map.

        pyramid=True gives the maps after the stages in `out_indices` instead, not normalised.
        """
        self.check_size(images)
        x = self.pos_embed(self.patch_embed(images))
        tokens, maps = self.cls_token[...].astype(x.dtype), []
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[1:]))
        for stage in self.stages:
            x, tokens = stage(x, tokens, train)
            maps.append(x)
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        return self.norm(jnp.concatenate([tokens, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1))

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or the first tokens' mean [B, C] without a head."""
        c = self.config
        if c.distilled:
            return self.two_heads(*(dropout(x[:, i], c.drop_rate, train) for i in range(2)), train)
        x = dropout(x[:, 0], c.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, with the way down to it, the head."""
        groups, block = [(r"^(patch_embed|pos_embed|cls_token)", 0)], 1
        for i, depth in enumerate(self.config.depths):
            groups.append((rf"^stages\.{i}\.pool\.", block))
            groups += [(rf"^stages\.{i}\.blocks\.{j}\.", block + j) for j in range(depth)]
            block += depth
        return (*groups, (r"", block))


def _pit(size, params, gmacs, **fields):
    """Registers a model, and the distilled one; a pair of parameters and of GMACs."""
    for i, kind in enumerate(("", "_distilled")):
        register(
            f"pit_{size}{kind}_224", PiT, PiTConfig(distilled=bool(i), **fields), params=params[i], gmacs=gmacs[i],
            paper="2103.16302", licence="apache-2.0", tags=("in1k",), crop_pct=0.9,
        )  # fmt: skip


_B = dict(patch_size=14, patch_stride=7, depths=(3, 6, 4), num_heads=(4, 8, 16), head_dim=64)
_pit("ti", (4_847_272, 5_104_336), (0.70, 0.71), head_dim=32)
_pit("xs", (10_618_888, 11_003_984), (1.40, 1.41))
_pit("s", (23_461_912, 24_039_056), (2.88, 2.90), num_heads=(3, 6, 12))
_pit("b", (73_764_840, 74_790_096), (12.42, 12.50), **_B)
