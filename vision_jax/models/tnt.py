"""TNT: Transformer in Transformer (Han et al., 2021, arXiv:2103.00112).

A patch is a sentence of words. An inner transformer runs over the words of each patch, pieces of 4x4 pixels; their
embeddings, side by side, are projected and added to the patch's token, and an outer transformer runs over these.

Official repository: huawei-noah/Efficient-AI-Backbones, tnt_pytorch; compared here with timm's. There are two releases:
the newer embeds every patch on its own and normalises before and after the projection of the words; `legacy` embeds
the whole image before it is cut, and normalises word by word.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.attention import Attention
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, patch_grid
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register


@dataclasses.dataclass(frozen=True)
class TNTConfig(ModelConfig):
    """A TNT: `inner_dim` channels a word, `embed_dim` a patch; words lie `stride` pixels apart."""

    patch_size: int = 16
    stride: int = 4
    embed_dim: int = 384
    inner_dim: int = 24
    depth: int = 12
    num_heads: int = 6
    inner_num_heads: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    legacy: bool = False
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        for dim, heads in (("embed_dim", "num_heads"), ("inner_dim", "inner_num_heads")):
            given, by = getattr(self, dim), getattr(self, heads)
            check(given % by == 0, f"{dim}={given} must be a multiple of {heads}={by}")
        check(
            self.patch_size % self.stride == 0,
            f"patch_size={self.patch_size} must be a multiple of stride={self.stride}",
        )
        patch_grid(self.img_size, self.patch_size)


class TNTBlock(nnx.Module):
    """Words [B*N, P, c] and patches [B, 1+N, C] -> the same (section 2.2)."""

    def __init__(self, config, words):
        c = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)

        def transformer(dim, num_heads, mlp_ratio):
            drops = dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
            attn = Attention(dim, num_heads, qkv_bias=c.qkv_bias, **drops, **kw)
            return Block(
                dim, attn=attn, mlp=Mlp(dim, int(dim * mlp_ratio), drop=c.proj_drop_rate, **kw), norm=norm, **kw
            )

        self.legacy = c.legacy
        self.inner = transformer(c.inner_dim, c.inner_num_heads, 4)
        self.norm1_proj = norm(c.inner_dim if c.legacy else words * c.inner_dim)
        self.proj = Linear(words * c.inner_dim, c.embed_dim, bias=c.legacy, **kw)
        self.norm2_proj = None if c.legacy else norm(c.embed_dim)
        self.outer = transformer(c.embed_dim, c.num_heads, c.mlp_ratio)

    def __call__(self, x, train=None):
        words, patches = x
        words = self.inner(words, train)
        B, sentences = patches.shape[0], (patches.shape[0], patches.shape[1] - 1, -1)
        if self.legacy:
            added = self.proj(self.norm1_proj(words).reshape(sentences))
        else:
            added = self.norm2_proj(self.proj(self.norm1_proj(words.reshape(sentences))))
        added = jnp.concatenate(
            [jnp.zeros((B, 1, added.shape[-1]), added.dtype), added], axis=1
        )  # the class has no words
        return words, self.outer(patches + added, train)


class WordEmbed(nnx.Module):
    """Images [B, H, W, C] -> words [B*N, P, c], the patches row by row and the words within each."""

    def __init__(self, config):
        c = config
        self.legacy, self.patch_size, self.stride = c.legacy, c.patch_size, c.stride
        self.proj = Conv(
            c.in_chans, c.inner_dim, 7, stride=c.stride, init=torch_default, bias_init=torch_default, dtype=c.dtype
        )

    def __call__(self, images):
        if self.legacy:
            words = _cut(self.proj(images), self.patch_size // self.stride)
        else:
            words = self.proj(_cut(images, self.patch_size))
        return words.reshape(words.shape[0], -1, words.shape[-1])


def _cut(x, p):
    """A map in squares, [B, H, W, C] -> [B*N, p, p, C]."""
    B, H, W, C = x.shape
    return x.reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3).reshape(-1, p, p, C)


class TNT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    torch_names: ClassVar = {
        "timm": (
            (r"\.qkv\.", (".qk.", ".qk.", ".v.")),
            (r"inner\.norm1\.", "norm_in."),
            (r"inner\.attn\.", "attn_in."),
            (r"inner\.norm2\.", "norm_mlp_in."),
            (r"inner\.mlp\.", "mlp_in."),
            (r"outer\.norm1\.", "norm_out."),
            (r"outer\.attn\.", "attn_out."),
            (r"outer\.norm2\.", "norm_mlp."),
            (r"outer\.mlp\.", "mlp."),
        )
    }
    inert = (r"attn\.qkv\.bias\[1\]$",)

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        self.grid, side = patch_grid(c.img_size, c.patch_size), c.patch_size // c.stride
        sentence = side * side * c.inner_dim
        self.pixel_embed = WordEmbed(c)
        self.norm1_proj = norm(sentence)
        self.proj = Linear(sentence, c.embed_dim, **kw)
        self.norm2_proj = norm(c.embed_dim)
        self.cls_token = param((1, 1, c.embed_dim), trunc_normal)
        self.patch_pos = param((1, 1 + math.prod(self.grid), c.embed_dim), trunc_normal)
        self.pixel_pos = param((1, c.inner_dim, side, side), trunc_normal)  # channels first, as in the weights
        (rates,) = linear_rates(c.drop_path_rate, (c.depth,))
        self.blocks = Stack(lambda index: TNTBlock(c, side * side), rates, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(c.embed_dim)
        self.head = Linear(c.embed_dim, c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", c.embed_dim, c.patch_size) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C], normalised.

        pyramid=True gives the patches' maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        c, B = self.config, images.shape[0]
        self.check_size(images)
        words = self.pixel_embed(images)
        words = words + self.pixel_pos[...].reshape(1, c.inner_dim, -1).swapaxes(1, 2).astype(words.dtype)
        x = self.norm2_proj(self.proj(self.norm1_proj(words.reshape(B, math.prod(self.grid), -1))))
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, c.embed_dim))
        x = jnp.concatenate([token, x], axis=1) + self.patch_pos[...].astype(x.dtype)
        x = words, dropout(x, c.pos_drop_rate, train)
        if pyramid:
            _, maps = self.blocks(x, train, collect=self.indices(out_indices))
            return [patches[:, 1:].reshape(B, *self.grid, -1) for _, patches in maps]
        _, x = self.blocks(x, train)
        return self.norm(x)

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or the class token [B, C] without a head."""
        x = dropout(x[:, 0], self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grid, 1) if leaf == "patch_pos" else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        stem = r"^(cls_token|patch_pos|pixel_pos|pixel_embed|norm[12]_proj|proj)"
        return block_groups(stem, {"blocks": self.blocks})


def _tnt(name, embed_dim, inner_dim, num_heads, params, gmacs, legacy=False):
    register(
        name, TNT, TNTConfig(embed_dim=embed_dim, inner_dim=inner_dim, num_heads=num_heads, legacy=legacy),
        params=params, gmacs=gmacs, paper="2103.00112", licence="apache-2.0", tags=("in1k",),
        mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.9,
    )  # fmt: skip


_tnt("tnt_s_legacy_patch16_224", 384, 24, 6, 23_755_336, 5.24, legacy=True)
_tnt("tnt_s_patch16_224", 384, 24, 6, 23_768_584, 5.24)
_tnt("tnt_b_patch16_224", 640, 40, 10, 65_428_680, 14.09)
