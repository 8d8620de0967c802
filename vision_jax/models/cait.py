"""CaiT: Going deeper with Image Transformers (Touvron et al., 2021, arXiv:2103.17239).

Two changes let a ViT grow deep: every branch ends in a learned scale a channel, near zero at first (LayerScale), and
the class token comes late: patches attend to each other, with heads that talk, then the token alone attends to them.
Official repository: facebookresearch/deit; compared here with timm's, whose names are the authors'.

As released every block of the first kind is dropped at the same rate, those of the class token are not.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from vision_jax.functional import tap
from vision_jax.layers.attention import Attention, aggregate, attention_scores
from vision_jax.layers.block import Block
from vision_jax.layers.class_attention import ClassAttention, ClassBlock
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.stack import Stack
from vision_jax.layers.talking_heads import TalkingHeads
from vision_jax.models.base import ClassTokenModel, FeatureInfo, ModelConfig, patch_grid
from vision_jax.parameters import param, trunc_normal
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class CaiTConfig(ModelConfig):
    """A CaiT: `depth` blocks of patches, then `class_depth` of the class token."""

    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 24
    class_depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    layer_scale_init: float = 1e-5
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        fits = self.embed_dim % self.num_heads == 0
        check(fits, f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        patch_grid(self.img_size, self.patch_size)


class TalkingHeadsAttention(Attention):
    """Self-attention whose heads mix before and after the softmax, [B, N, C] -> [B, N, C] (arXiv:2003.02436)."""

    def __init__(self, dim, num_heads, *, dtype=jnp.float32, **options):
        super().__init__(dim, num_heads, dtype=dtype, **options)
        self.proj_l, self.proj_w = (TalkingHeads(num_heads, num_heads, dtype=dtype) for _ in range(2))

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        probabilities = self.proj_w(jax.nn.softmax(self.proj_l(attention_scores(q, k)), axis=-1))
        probabilities = tap(self, "probabilities", probabilities)
        out = aggregate(dropout(probabilities, self.attn_drop, train), v)
        return dropout(self.proj(out.reshape(x.shape)), self.proj_drop, train)


class CaiT(ClassTokenModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    # what is added to every key, or to all scores of a head, adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$", r"attn\.proj_l\.bias$")
    torch_names: ClassVar = {
        "timm": (
            (r"^class_blocks\.", "blocks_token_only."),
            (r"^(blocks_token_only\.\d+\.attn\.)qkv\.", (r"\1q.", r"\1k.", r"\1v.")),
            (r"\.ls(\d)\.gamma$", r".gamma_\1"),
        )
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        dim, hidden, run = c.embed_dim, int(c.embed_dim * c.mlp_ratio), dict(scan=c.scan_blocks, remat=c.remat)
        self.grid = patch_grid(c.img_size, c.patch_size)
        self.patch_embed = PatchEmbed(c.in_chans, dim, c.patch_size, **kw)
        self.cls_token = param((1, 1, dim), trunc_normal)
        self.pos_embed = param((1, math.prod(self.grid), dim), trunc_normal)

        def block(index):
            drops = dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
            attn = TalkingHeadsAttention(dim, c.num_heads, **drops, **kw)
            mlp = Mlp(dim, hidden, drop=c.proj_drop_rate, **kw)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, **kw)

        def class_block(index):
            attn, mlp = ClassAttention(dim, c.num_heads, **kw), Mlp(dim, hidden, **kw)
            return ClassBlock(dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, **kw)

        self.blocks = Stack(block, (c.drop_path_rate,) * c.depth, **run)
        self.class_blocks = Stack(class_block, (0.0,) * c.class_depth, **run)
        self.norm = norm(dim)
        self.head = Linear(dim, c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", dim, c.patch_size) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C], the class token first, normalised.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        self.check_size(images)
        x = self.patch_embed(images)
        shape, (B, *_, C) = x.shape, x.shape
        x = x.reshape(B, -1, C) + self.pos_embed[...].astype(x.dtype)
        x = dropout(x, self.config.pos_drop_rate, train)
        if pyramid:
            _, maps = self.blocks(x, train, collect=self.indices(out_indices))
            return [m.reshape(shape) for m in maps]
        x = self.blocks(x, train)
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, C))
        return self.norm(jnp.concatenate([self.class_blocks(token, train, x), x], axis=1))

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the class token's blocks, the head."""
        c = self.config
        blocks = tuple((rf"^blocks\.{i}\.", i + 1) for i in range(c.depth))
        # as in timm the class token's blocks share the groups of as many last blocks
        late = tuple((rf"^class_blocks\.{i}\.", c.depth - c.class_depth + 1 + i) for i in range(c.class_depth))
        return ((r"^(patch_embed|pos_embed|cls_token)", 0), *blocks, *late, (r"", c.depth + 1))


def _cait(name, dim, depth, init, sizes):
    for img_size, (params, gmacs) in sizes.items():
        config = CaiTConfig(
            img_size=img_size, embed_dim=dim, depth=depth, num_heads=dim // 48, layer_scale_init=init
        )  # fmt: skip
        register(
            f"cait_{name}_{img_size}", CaiT, config, params=params, gmacs=gmacs, paper="2103.17239",
            licence="apache-2.0", tags=("fb_dist_in1k",), crop_pct=1.0,
        )  # fmt: skip


_cait("xxs24", 192, 24, 1e-5, {224: (11_956_264, 2.53), 384: (12_029_224, 9.63)})
_cait("xxs36", 192, 36, 1e-5, {224: (17_299_720, 3.77), 384: (17_372_680, 14.35)})
_cait("xs24", 288, 24, 1e-5, {384: (26_670_088, 19.28)})
_cait("s24", 384, 24, 1e-5, {224: (46_916_200, 9.35), 384: (47_062_120, 32.17)})
_cait("s36", 384, 36, 1e-6, {384: (68_366_632, 47.99)})
_cait("m36", 768, 36, 1e-6, {384: (271_221_352, 173.11)})
_cait("m48", 768, 48, 1e-6, {448: (356_460_520, 329.41)})
