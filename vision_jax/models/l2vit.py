"""L2ViT: The Linear Attention Resurrection in Vision Transformer (Zheng, 2025, arXiv:2501.16182).

Blocks of softmax attention inside windows take turns with blocks of linear attention over the whole map. Features of
linear attention are made positive by a ReLU; because its weights spread over the map, two depthwise convolutions of
7x7, the local concentration module, sharpen what comes out. Depthwise convolutions give the positions.

Official repository: ChuanyangZheng/L2ViT (MIT); its weights are published as pickles. As in its code, the divisor of
linear attention is at least 100, the result is multiplied by a learned temperature a head, windows do not shift, and a
map that they do not tile is padded with zeros below and to the right.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.kernels import linear_attention
from vision_jax.layers.attention import QKV
from vision_jax.layers.conditional_position import ConditionalPosition
from vision_jax.layers.conv_stem import ConvStem, sequential_names
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.local_interaction import LocalInteraction
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import WindowAttention
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, Stage, check_stages, stage_groups
from vision_jax.parameters import Constant, param
from vision_jax.registry import register


@dataclasses.dataclass(frozen=True)
class L2ViTConfig(ModelConfig):
    """An L2ViT; a number a stage for depths, embed_dims and num_heads."""

    depths: tuple = (2, 2, 6, 2)
    embed_dims: tuple = (96, 192, 384, 768)
    num_heads: tuple = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads")


class LinearGlobalAttention(nnx.Module):
    """relu(q) (sum relu(k) v^T) t / max(relu(q) . sum relu(k), 100), [B, H, W, C] -> [B, H, W, C] (section 3.2)."""

    def __init__(self, dim, num_heads, *, dtype):
        self.temperature = param((num_heads, 1, 1), Constant((dim // num_heads) ** -0.5))
        self.qkv = QKV(dim, num_heads, dim // num_heads, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        q, k = jax.nn.relu(q), jax.nn.relu(k)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        weights = jnp.einsum("bhwnd,bnd->bhwn", q, k.sum((1, 2), dtype=wide))
        factor = self.temperature[:, 0, 0].astype(wide) / jnp.maximum(weights, 100)
        out = linear_attention(q, k, v) * factor[..., None]
        return self.proj(out.reshape(x.shape))


class L2ViTBlock(nnx.Module):
    """Attention in windows, or over the whole map and concentrated; then the channels: [B, H, W, C] -> [B, H, W, C].

    A local block finds positions twice, before each of its two branches; a global one once, before the first of three,
    the second of which concentrates by convolutions of 7x7 (section 3.3).
    """

    def __init__(self, dim, *, attn, mlp, local, norm, dtype):
        self.cpe1, self.cpe2 = (ConditionalPosition(dim, dtype=dtype) if use else None for use in (True, local))
        self.norm1, self.attn = norm(dim), attn
        self.norm3, self.local_mp = (None, None) if local else (norm(dim), LocalInteraction(dim, 7, dtype=dtype))
        self.norm2, self.mlp = norm(dim), mlp

    def __call__(self, x, train=None):
        x = self.cpe1(x)
        x = x + drop_path(tap(self, "attn", self.attn(self.norm1(x), train)), train)
        x = self.cpe2(x) if self.cpe2 else x + drop_path(self.local_mp(self.norm3(x), train), train)
        x = x + drop_path(tap(self, "mlp", self.mlp(self.norm2(x), train)), train)
        return tap(self, "output", constrain_batch(x))


class Stem(ConvStem):
    """Two strided convolutions and a norm, [B, H, W, C] -> [B, ceil(H/4), ceil(W/4), dim]."""

    def __init__(self, channels, dim, *, norm, dtype):
        super().__init__(channels, (dim // 2, dim), (2, 2), act=jax.nn.relu, dtype=dtype)
        self.norm = norm(dim)

    def __call__(self, x, train=None):
        H, W = x.shape[1:3]
        return self.norm(super().__call__(jnp.pad(x, ((0, 0), (0, -H % 4), (0, -W % 4), (0, 0))), train))


OFFICIAL = (
    *sequential_names("patch_embed", "downsample_layers.0.proj.proj"),
    (r"^patch_embed\.norm", "downsample_layers.0.norm"),
    (r"^stages\.(\d+)\.downsample\.conv", r"downsample_layers.\1.proj"),
    (r"^stages\.(\d+)\.downsample\.norm", r"downsample_layers.\1.norm"),
    (r"\.blocks\.", "."),
    (r"\.cpe([12])\.", lambda match: f".cpe.{int(match[1]) - 1}."),
)


class L2ViT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    # in windows, what is added to every key adds one number to all scores of a query
    inert = (r"blocks\.\d*[02468]\.attn\.qkv\.bias\[1\]$",)
    torch_names: ClassVar = {"official": OFFICIAL}

    def __init__(self, config):
        c = self.config = config
        self.patch_embed = Stem(c.in_chans, c.embed_dims[0], norm=self._norm, dtype=c.dtype)
        stages, info = [], []
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            dim = c.embed_dims[i]
            halve = functools.partial(Downsample, stride=2, padding="same", norm=self._norm, dtype=c.dtype)
            blocks = Stack(functools.partial(self._block, i), rates, remat=c.remat)
            stages.append(Stage(halve(c.embed_dims[i - 1], dim, 2) if i else None, blocks))
            info.append(FeatureInfo(f"stages.{i}", dim, 4 * 2**i))
        self.stages = nnx.List(stages)
        self.norm = self._norm(dim)
        self.head = Linear(dim, c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(info)

    def _block(self, stage, index):
        """Local and global blocks take turns, a local one first."""
        c = self.config
        dim, heads, local, kw = c.embed_dims[stage], c.num_heads[stage], index % 2 == 0, dict(dtype=c.dtype)
        if local:
            attn = WindowAttention(dim, heads, (c.window_size,) * 2, relative_bias=False, **kw)
        else:
            attn = LinearGlobalAttention(dim, heads, **kw)
        return L2ViTBlock(
            dim, attn=attn, mlp=Mlp(dim, int(dim * c.mlp_ratio), **kw), local=local, norm=self._norm, **kw
        )

    def _norm(self, dim):
        return LayerNorm(dim, epsilon=1e-5, dtype=self.config.dtype)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C], normalised; pyramid=True: the maps after the stages, as is."""
        maps = self.run_stages(self.patch_embed(images, train), train)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else self.norm(maps[-1])

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^patch_embed")


DEEP = dict(depths=(2, 2, 18, 2))
WIDE = dict(DEEP, embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32))


def _l2vit(name, params, gmacs, fields, **preprocessing):
    register(
        name, L2ViT, L2ViTConfig(**fields), params=params, gmacs=gmacs, paper="2501.16182", licence="mit",
        reference="ChuanyangZheng/L2ViT", **preprocessing,
    )  # fmt: skip


_l2vit("l2vit_tiny", 28_596_781, 4.7, {})
_l2vit("l2vit_small", 50_199_157, 9.0, DEEP)
_l2vit("l2vit_base", 88_577_188, 15.9, WIDE)
_l2vit(
    "l2vit_base_384", 88_577_188, 47.5, dict(WIDE, img_size=384, window_size=12), crop_pct=1.0, crop_mode="squash"
)  # fmt: skip
