"""XCiT: Cross-Covariance Image Transformers (El-Nouby et al., 2021, arXiv:2106.09681).

Channels attend to each other, not tokens: the scores are the cross-covariance of keys and queries, so that the cost is
linear in the tokens. Depthwise convolutions let neighbours speak; two blocks of class attention end it, as in CaiT.
Positions are fixed functions, so a model takes images of any size.

Official repository: facebookresearch/xcit; compared here with timm's. As released, every block has the same drop-path
rate, the class token's have none, and in those the patches are normalised and added to themselves on the way.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.channel_attention import ChannelAttention
from vision_jax.layers.class_attention import ClassAttention
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.fourier_positions import FourierPositions
from vision_jax.layers.linear import Linear
from vision_jax.layers.local_interaction import LocalInteraction
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.scale import LayerScale
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import check, register

_CONV = dict(init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class XCiTConfig(ModelConfig):
    """An XCiT: `depth` blocks of patches, then `class_depth` with a class token.

    `norm_patches`: the latter normalise the patches, not only the token, before their MLP.
    """

    patch_size: int = 16
    embed_dim: int = 384
    depth: int = 12
    class_depth: int = 2
    num_heads: int = 8
    mlp_ratio: float = 4.0
    layer_scale_init: float = 1.0
    norm_patches: bool = True
    scan_blocks: bool = False

    def __post_init__(self):
        check(self.patch_size in (8, 16), f"patch_size={self.patch_size}: 8 or 16")
        fits = self.embed_dim % self.num_heads == 0
        check(fits, f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")


class XCiTBlock(nnx.Module):
    """Channels attend, neighbours speak, then an MLP: three residual branches, [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, dim, norm):
        kw, scale = dict(dtype=c.dtype), functools.partial(LayerScale, dim, c.layer_scale_init, dtype=c.dtype)
        self.norm1, self.attn, self.ls1 = norm(dim), ChannelAttention(dim, c.num_heads, cosine=True, **kw), scale()
        self.norm3, self.local_mp, self.ls3 = norm(dim), LocalInteraction(dim, 3, **_CONV, **kw), scale()
        self.norm2, self.mlp, self.ls2 = norm(dim), Mlp(dim, int(dim * c.mlp_ratio), **kw), scale()

    def __call__(self, x, train=None):
        x = x + drop_path(self.ls1(tap(self, "attn", self.attn(self.norm1(x), train))), train)
        x = x + drop_path(self.ls3(self.local_mp(self.norm3(x), train)), train)
        x = x + drop_path(self.ls2(tap(self, "mlp", self.mlp(self.norm2(x), train))), train)
        return tap(self, "output", constrain_batch(x))


class XCiTClassBlock(nnx.Module):
    """Class attention, then an MLP of the class token, [B, 1+N, C] -> [B, 1+N, C]; the first token is the class."""

    def __init__(self, c, dim, norm):
        self.norm_patches, kw = c.norm_patches, dict(dtype=c.dtype)
        self.norm1, self.attn = norm(dim), ClassAttention(dim, c.num_heads, **kw)
        self.norm2, self.mlp = norm(dim), Mlp(dim, int(dim * c.mlp_ratio), **kw)
        self.ls1, self.ls2 = (LayerScale(dim, c.layer_scale_init, **kw) for _ in range(2))

    def __call__(self, x, train=None):
        y = self.norm1(x)
        x = x + self.ls1(jnp.concatenate([tap(self, "attn", self.attn(y, train)), y[:, 1:]], axis=1))
        token, patches = x[:, :1], x[:, 1:]
        token, patches = self.norm2(token), self.norm2(patches) if self.norm_patches else patches
        token = token + self.ls2(tap(self, "mlp", self.mlp(token, train)))
        return tap(self, "output", jnp.concatenate([token, 2 * patches], axis=1))


_NAMES = (
    (r"^patch_embed\.(\d)\.conv\.", lambda match: f"patch_embed.proj.{2 * int(match[1])}.0."),
    (r"^patch_embed\.(\d)\.bn\.", lambda match: f"patch_embed.proj.{2 * int(match[1])}.1."),
    (r"^class_blocks\.", "cls_attn_blocks."),
    (r"\.ls(\d)\.gamma$", r".gamma\1"),
)


class XCiT(Model):
    """Images [B, H, W, C] of any size -> logits [B, num_classes]."""

    classifier = ("head",)
    inert = (r"class_blocks\.\d+\.attn\.qkv\.bias\[1\]$",)  # one number is added to all scores of the token
    torch_names: ClassVar = {
        "timm": (*_NAMES, (r"^(cls_attn_blocks\.\d+\.attn\.)qkv\.", (r"\1q.", r"\1k.", r"\1v."))),
        "official": (*_NAMES, (r"^pos_embed\.", "pos_embeder.")),
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        dim, run, steps = c.embed_dim, dict(scan=c.scan_blocks, remat=c.remat), {8: 3, 16: 4}[c.patch_size]
        dims = (c.in_chans, *(dim // 2 ** (steps - 1 - i) for i in range(steps)))
        self.patch_embed = nnx.List(
            [
                ConvNorm(dims[i], dims[i + 1], 3, stride=2, act=gelu if i < steps - 1 else None, **kw)
                for i in range(steps)
            ]
        )
        self.pos_embed = FourierPositions(dim, **_CONV, **kw)
        self.cls_token = param((1, 1, dim), trunc_normal)
        self.blocks = Stack(lambda index: XCiTBlock(c, dim, norm), (c.drop_path_rate,) * c.depth, **run)
        self.class_blocks = Stack(lambda index: XCiTClassBlock(c, dim, norm), (0.0,) * c.class_depth, **run)
        self.norm = norm(dim)
        self.head = Linear(dim, c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", dim, c.patch_size) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C], the class token first, normalised.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        x = images
        for conv in self.patch_embed:
            x = conv(x, train)
        B, H, W, C = x.shape
        x = x + self.pos_embed(H, W)
        if pyramid:
            return self.blocks(x, train, collect=self.indices(out_indices))[1]
        x = self.blocks(x, train).reshape(B, H * W, C)
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, C))
        return self.norm(self.class_blocks(jnp.concatenate([token, x], axis=1), train))

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or the class token [B, C] without a head."""
        x = dropout(x[:, 0], self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, those of the class token, the head."""
        c = self.config
        blocks = tuple((rf"^blocks\.{i}\.", i + 1) for i in range(c.depth))
        late = tuple((rf"^class_blocks\.{i}\.", c.depth + 1 + i) for i in range(c.class_depth))
        return ((r"^(patch_embed|pos_embed|cls_token)", 0), *blocks, *late, (r"", c.depth + c.class_depth + 1))


_SIZES = {"nano": (128, 4), "tiny": (192, 4), "small": (384, 8), "medium": (512, 8), "large": (768, 16)}


def _xcit(size, depth, patch_size, params, gmacs):
    """Registers both resolutions; `gmacs` at 224 and at 384 pixels."""
    dim, heads = _SIZES[size]
    for img_size, cost, tags in ((224, gmacs[0], ("fb_in1k", "fb_dist_in1k")), (384, gmacs[1], ("fb_dist_in1k",))):
        config = XCiTConfig(
            img_size=img_size, patch_size=patch_size, embed_dim=dim, depth=depth, num_heads=heads,
            layer_scale_init=1.0 if depth == 12 else 1e-5, norm_patches=size != "nano",
        )  # fmt: skip
        register(
            f"xcit_{size}_{depth}_p{patch_size}_{img_size}", XCiT, config, params=params, gmacs=cost,
            paper="2106.09681", licence="apache-2.0", tags=tags, crop_pct=1.0,
        )  # fmt: skip


_xcit("nano", 12, 16, 3_053_224, (0.56, 1.64))
_xcit("nano", 12, 8, 3_049_016, (2.16, 6.34))
_xcit("tiny", 12, 16, 6_716_272, (1.24, 3.64))
_xcit("tiny", 12, 8, 6_706_504, (4.81, 14.12))
_xcit("tiny", 24, 16, 12_116_896, (2.34, 6.87))
_xcit("tiny", 24, 8, 12_107_128, (9.21, 27.05))
_xcit("small", 12, 16, 26_253_304, (4.82, 14.14))
_xcit("small", 12, 8, 26_213_032, (18.69, 54.92))
_xcit("small", 24, 16, 47_671_384, (9.10, 26.72))
_xcit("small", 24, 8, 47_631_112, (35.81, 105.24))
_xcit("medium", 24, 16, 84_395_752, (16.13, 47.39))
_xcit("medium", 24, 8, 84_323_624, (63.53, 186.67))
_xcit("large", 24, 16, 189_096_136, (35.86, 105.35))
_xcit("large", 24, 8, 188_932_648, (141.23, 415.00))
