"""LookupViT: Compressing visual information to a limited number of tokens (Koner et al., 2024, arXiv:2407.12753).

Many cheap tokens hold the image, few costly ones think. In every block the few gather from the many by cross-attention,
attend to each other, and give back by the same attention the other way round: its scores transposed, a softmax over the
few. The few start as the image's tokens interpolated, on a grid of any size.

The authors published no code; compared here with lucidrains/vit-pytorch's `LookViT`, which the choices that the paper
leaves open follow: patches through a convolution of 7x7, fixed positions, norms without biases, one more norm after
what the image's tokens are given, one head for the sum of both means.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import QKV, Attention, Values, aggregate, attention_scores
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.interpolate import bilinear
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.position import sincos_2d
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, patch_grid
from vision_jax.parameters import torch_default, zeros
from vision_jax.registry import check, register

_linear = functools.partial(Linear, init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class LookupViTConfig(ModelConfig):
    """A LookupViT.

    Attributes:
      patch_size: of the image's own tokens, which are looked up.
      compressed_size: rows and columns of the compressed tokens.
      mlp_ratio, lookup_mlp_ratio: of the compressed tokens' network and of the others'.
      kernel_size: of the convolution over the patches.
    """

    img_size: int | tuple = 256
    patch_size: int = 16
    compressed_size: int | tuple = 8
    embed_dim: int = 512
    depth: int = 3
    num_heads: int = 8
    mlp_ratio: float = 4.0
    lookup_mlp_ratio: float = 4.0
    kernel_size: int = 7
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        dim, heads = self.embed_dim, self.num_heads
        check(dim % heads == 0, f"embed_dim={dim} must be a multiple of num_heads={heads}")
        check(dim % 4 == 0, f"embed_dim={dim} must be a multiple of 4, for the positions")
        check(self.kernel_size % 2 == 1, f"kernel_size={self.kernel_size} must be odd")
        patch_grid(self.img_size, self.patch_size)

    def norm(self, dim):
        """The norm of all layers: no bias, and a scale that is stored as its difference from 1."""
        return LayerNorm(dim, epsilon=1e-5, bias=False, scale_init=zeros, offset=1.0, dtype=self.dtype)

    def mlp(self, ratio):
        """A channel mixer."""
        hidden = int(self.embed_dim * ratio)
        return Mlp(self.embed_dim, hidden, drop=self.proj_drop_rate, linear=_linear, dtype=self.dtype)


class Gather(nnx.Module):
    """What the compressed tokens [B, M, C] find among the others [B, N, C]: [B, M, C], and the scores they had."""

    def __init__(self, c):
        self.drop, self.proj_drop, dim, kw = c.attn_drop_rate, c.proj_drop_rate, c.embed_dim, dict(dtype=c.dtype)
        self.norm, self.norm_context = c.norm(dim), c.norm(dim)
        self.qkv = QKV(dim, c.num_heads, dim // c.num_heads, bias=False, init=torch_default, **kw)
        self.proj = _linear(dim, dim, bias=False, **kw)

    def __call__(self, x, context, train):
        y = self.norm_context(context)
        q, k, v = self.qkv(self.norm(x), y, y)
        scores = attention_scores(q, k)
        probabilities = tap(self, "probabilities", jax.nn.softmax(scores, axis=-1))
        out = aggregate(dropout(probabilities, self.drop, train), v).reshape(x.shape)
        return dropout(self.proj(out), self.proj_drop, train), scores


class Infuse(nnx.Module):
    """What the compressed tokens [B, M, C] give back by the scores [B, heads, M, N] they asked with: [B, N, C]."""

    def __init__(self, c):
        self.drop, self.proj_drop, dim, kw = c.attn_drop_rate, c.proj_drop_rate, c.embed_dim, dict(dtype=c.dtype)
        self.norm_context = c.norm(dim)
        self.v = Values(dim, c.num_heads, dim // c.num_heads, bias=False, init=torch_default, **kw)
        self.proj = _linear(dim, dim, bias=False, **kw)

    def __call__(self, context, scores, train):
        (v,) = self.v(self.norm_context(context))
        probabilities = tap(self, "probabilities", jax.nn.softmax(scores.swapaxes(2, 3), axis=-1))
        out = aggregate(dropout(probabilities, self.drop, train), v)
        return dropout(self.proj(out.reshape(*out.shape[:2], -1)), self.proj_drop, train)


class LookupBlock(nnx.Module):
    """(compressed tokens [B, M, C], image's tokens [B, N, C]) -> the same (figure 2)."""

    def __init__(self, c):
        dim, norm, rates = c.embed_dim, c.norm, dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
        self.gather, self.infuse = Gather(c), Infuse(c)
        attn = Attention(
            dim, c.num_heads, qkv_bias=False, proj_bias=False, qkv=functools.partial(QKV, init=torch_default),
            linear=functools.partial(Linear, init=torch_default), **rates, dtype=c.dtype,
        )  # fmt: skip
        self.compressed = Block(dim, attn=attn, mlp=c.mlp(c.mlp_ratio), norm=norm, dtype=c.dtype)
        self.norm1, self.norm2, self.mlp = norm(dim), norm(dim), c.mlp(c.lookup_mlp_ratio)

    def __call__(self, tokens, train=None):
        few, many = tokens
        found, scores = self.gather(few, many, train)
        few = self.compressed(few + drop_path(found, train), train)
        many = self.norm1(many + drop_path(self.infuse(few, scores, train), train))
        many = many + drop_path(self.mlp(self.norm2(many), train), train)
        return few, tap(self, "output", constrain_batch(many))


class LookupViT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; H and W are multiples of the patch size."""

    classifier = ("head",)
    torch_names: ClassVar = {
        "vit_pytorch": (
            (r"(norm\w*)\.weight$", r"\1.gamma"),
            (r"^patch_embed\.", "to_patches.1."),
            (r"^norm_pre\.", "to_patches.3."),
            (r"^lookup_norm\.", "highres_norm."),
            (r"^head\.", "to_logits."),
            (r"^blocks\.(\d+)\.", r"layers.\1."),
            (r"\.qkv\.", (".to_q.", ".to_k.", ".to_v.")),
            (r"\.v\.", ".to_v."),
            (r"\.proj\.", ".to_out.1."),
            (r"\.gather\.", ".2."),
            (r"\.infuse\.", ".3."),
            (r"\.compressed\.(attn\.|norm1)", lambda match: ".0.norm" if match[1] == "norm1" else ".0."),
            (r"\.compressed\.norm2\.", ".1.0."),
            (r"\.compressed\.mlp\.fc(.)", lambda match: f".1.{'14'[int(match[1]) - 1]}"),
            (r"^(layers\.\d+)\.norm1\.", r"\1.4."),
            (r"^(layers\.\d+)\.norm2\.", r"\1.5.0."),
            (r"^(layers\.\d+)\.mlp\.fc(.)", lambda match: f"{match[1]}.5.{'14'[int(match[2]) - 1]}"),
        )
    }
    torch_ignore = (r"^pos_embedding$",)  # declared there, not used

    def __init__(self, config):
        c = self.config = config
        dim, patch = c.embed_dim, c.patch_size
        self.patch_embed = Conv(
            patch * patch * c.in_chans, dim, c.kernel_size, init=torch_default, bias_init=torch_default, dtype=c.dtype
        )
        self.norm_pre = c.norm(dim)
        (rates,) = linear_rates(c.drop_path_rate, (c.depth,))
        self.blocks = Stack(lambda index: LookupBlock(c), rates, scan=c.scan_blocks, remat=c.remat)
        self.norm, self.lookup_norm = c.norm(dim), c.norm(dim)
        self.head = _linear(dim, c.num_classes, bias=False, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", dim, patch) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> (compressed tokens [B, M, C], the image's [B, H/p * W/p, C]), normalised.

        pyramid=True gives the image's tokens after the blocks in `out_indices` instead, as maps, not normalised.
        """
        (h, w), p = patch_grid(images.shape[1:3], self.config.patch_size), self.config.patch_size
        x = images.reshape(images.shape[0], h, p, w, p, -1).transpose(0, 1, 3, 2, 4, 5)
        x = self.norm_pre(self.patch_embed(x.reshape(images.shape[0], h, w, -1)))
        x = x + sincos_2d(h, w, x.shape[-1]).astype(x.dtype).reshape(h, w, -1)
        few = bilinear(x, pair(self.config.compressed_size))
        tokens = tuple(y.reshape(y.shape[0], -1, y.shape[-1]) for y in (few, x))
        if pyramid:
            _, maps = self.blocks(tokens, train, collect=self.indices(out_indices))
            return [many.reshape(x.shape) for _, many in maps]
        few, many = self.blocks(tokens, train)
        return self.norm(few), self.lookup_norm(many)

    def forward_head(self, x, train=None):
        """Both kinds of tokens -> logits [B, num_classes], or pooled features [B, C] without a head."""
        few, many = x
        x = dropout(few.mean(axis=1) + many.mean(axis=1), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        return block_groups(r"^(patch_embed|norm_pre)\.", {"blocks": self.blocks})


def _lookupvit(name, params, gmacs, **fields):
    register(
        f"lookupvit_{name}", LookupViT, LookupViTConfig(**fields), params=params, gmacs=gmacs, paper="2407.12753",
        licence="mit", reference="lucidrains/vit-pytorch",
    )  # fmt: skip


# The reference's own defaults at 256 pixels, and its example, with multiply-adds as counted here: the paper has its
# models' alone, and neither code nor weights of those are published.
_lookupvit("patch16_256", 40_254_976, 7.99)
_lookupvit("patch8_256", 16_880_640, 9.40, patch_size=8, depth=2, lookup_mlp_ratio=2.0)
