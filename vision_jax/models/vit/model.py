"""The model: tokens of patches, a stack of blocks, a head."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax.numpy as jnp

from vision_jax.errors import InputError
from vision_jax.layers.attention import Attention
from vision_jax.layers.attention_pool import AttentionPoolLatent
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.glu import GatedMlp
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu, gelu_tanh, quick_gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.position import sincos_2d
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, patch_grid
from vision_jax.models.vit.dialects import BIG_VISION, HF, HF_MODULES
from vision_jax.parameters import Constant, Normal, ones, param, trunc_normal, zeros
from vision_jax.registry import check

ACT = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


@dataclasses.dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """A ViT.

    Attributes:
      mlp: "mlp", or "swiglu", whose two halves share the hidden features. act: "gelu", "gelu_tanh" or "quick_gelu", of
        the former.
      class_token, distilled: the class token, and DeiT's second one beside it; reg_tokens: number of registers.
      no_embed_class: positions for the patches alone, none for these tokens.
      global_pool: "token" reads the class token, "avg" averages the patches, "map" pools them by attention.
      fc_norm: normalise after pooling, not before; None means after "avg" only.
      position: "learned", "none", or "sincos2d", fixed (Better plain ViT baselines: Beyer et al., 2022,
        arXiv:2205.01580).
      mlp_norm: normalise the hidden features, attn_norm: the heads' results, both before their projection (Magneto:
        Wang et al., 2022, arXiv:2210.06423).
      norm_last: normalise what each branch gives, not what it gets (Swin V2, the largest EVA-02); `layer_scale_init` is
        then of these norms' own scales.
      final_norm: normalise the last tokens, or what is pooled of them, at all.
      pre_norm: normalise the tokens before the first block too (CLIP); patches then have no bias.
      pool_heads, pool_mlp_ratio: of the attention that "map" pools by, where they are not the blocks'.
      norm_epsilon: of all norms.
      drop_edge: ignore the pixels beyond the last whole patch (SigLIP's 384 at patches of 14), else refused.
    """

    patch_size: int | tuple = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: str = "mlp"
    act: str = "gelu"
    qkv_bias: bool = True
    qk_norm: bool = False
    class_token: bool = True
    distilled: bool = False
    reg_tokens: int = 0
    no_embed_class: bool = False
    global_pool: str = "token"
    fc_norm: bool | None = None
    position: str = "learned"
    mlp_norm: bool = False
    attn_norm: bool = False
    norm_last: bool = False
    final_norm: bool = True
    pre_norm: bool = False
    pool_heads: int | None = None
    pool_mlp_ratio: float | None = None
    norm_epsilon: float = 1e-6
    drop_edge: bool = False
    layer_scale_init: float | None = None
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        dim, heads, pool, fixed = self.embed_dim, self.num_heads, self.global_pool, self.position == "sincos2d"
        check(dim % heads == 0, f"embed_dim={dim} must be a multiple of num_heads={heads}")
        for field, allowed in (
            ("global_pool", ("token", "avg", "map")),
            ("position", ("learned", "sincos2d", "none")),
            ("mlp", ("mlp", "swiglu")),
            ("act", tuple(ACT)),
        ):
            given = getattr(self, field)
            check(given in allowed, f"{field}={given!r}: one of {', '.join(map(repr, allowed))}")
        check(self.class_token or pool != "token", "global_pool='token' needs class_token=True; or use 'avg'")
        alone = pool == "token" and not self.reg_tokens and not self.fc_norm
        check(alone or not self.distilled, "distilled=True needs global_pool='token', reg_tokens=0 and no fc_norm")
        check(not (fixed and self.class_token), "position='sincos2d' is for class_token=False")
        check(not fixed or dim % 4 == 0, f"position='sincos2d' needs embed_dim={dim} to be a multiple of 4")
        patch_grid(self.img_size, self.patch_size, self.drop_edge)


def settle(config, **values):
    """Raises InputError unless these fields of a ViT's have the one value that a family allows."""
    for field, value in values.items():
        given = getattr(config, field)
        check(given == value, f"{field}={given!r}: {type(config).__name__} has {field}={value!r} alone")


class VisionTransformer(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; the two heads' logits where a distilled one is trained."""

    classifier = ("head", "head_dist")
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$", r"attn_pool\.kv\.bias\[0\]$", r"attn\.k_norm\.bias$")
    torch_names: ClassVar = {"timm": (), "hf": HF, "hf_modules": HF_MODULES}
    linen_names: ClassVar = {"big_vision": BIG_VISION}
    token_init, head_init = Normal(1e-6), trunc_normal  # of the class token and registers, of the head
    head_bias_init = zeros
    pool_all = False  # whether "map" pools the tokens before the patches too

    def __init__(self, config):
        c = self.config = config
        kw, norm = {"dtype": c.dtype}, self.make_norm
        dim = c.embed_dim
        self.grid = patch_grid(c.img_size, c.patch_size, c.drop_edge)
        self.patch_embed = self.make_patch_embed()
        self.cls_token = param((1, 1, dim), self.token_init) if c.class_token else None
        self.dist_token = param((1, 1, dim), trunc_normal) if c.distilled else None
        self.reg_token = param((1, c.reg_tokens, dim), self.token_init) if c.reg_tokens else None
        # tokens before the patches, and how many of them have a position
        self.prefix = int(c.class_token) + int(c.distilled) + c.reg_tokens
        self.placed = 0 if c.no_embed_class or c.position != "learned" else self.prefix
        tokens = self.placed + math.prod(self.grid)
        self.pos_embed = param((1, tokens, dim), trunc_normal) if c.position == "learned" else None

        self.norm_pre = norm(dim) if c.pre_norm else None
        (rates,) = linear_rates(c.drop_path_rate, (c.depth,))
        self.blocks = Stack(self.make_block, rates, runs=self.runs(), scan=c.scan_blocks, remat=c.remat)
        pooled_first = c.global_pool == "avg" if c.fc_norm is None else c.fc_norm
        self.norm = norm(dim) if c.final_norm and not pooled_first else None
        self.fc_norm = norm(dim) if c.final_norm and pooled_first else None
        hidden = int(dim * (c.pool_mlp_ratio or c.mlp_ratio))
        self.attn_pool = (
            AttentionPoolLatent(dim, c.pool_heads or c.num_heads, hidden, norm=norm, act=ACT[c.act], **kw)
            if c.global_pool == "map"
            else None
        )
        head = functools.partial(Linear, dim, c.num_classes, init=self.head_init, bias_init=self.head_bias_init, **kw)
        self.head = head() if c.num_classes else None
        self.head_dist = head() if c.num_classes and c.distilled else None
        reduction = pair(c.patch_size)[0]
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", dim, reduction) for i in range(c.depth))

    def make_patch_embed(self):
        """Images [B, H, W, C] -> the map of patches [B, H/p, W/p, dim]."""
        c = self.config
        return PatchEmbed(c.in_chans, c.embed_dim, c.patch_size, bias=not c.pre_norm, dtype=c.dtype)

    def make_norm(self, dim, scale_init=ones):
        """The norm of all layers."""
        return LayerNorm(dim, epsilon=self.config.norm_epsilon, scale_init=scale_init, dtype=self.config.dtype)

    def make_block(self, index):
        """One of the blocks, [B, N, C] -> [B, N, C]."""
        c, norm, scale = self.config, self.make_norm, self.config.layer_scale_init
        if c.norm_last and scale is not None:
            norm, scale = functools.partial(norm, scale_init=Constant(scale)), None
        attn, mlp = self.make_attention(index), self.make_mlp(index)
        return Block(
            c.embed_dim, attn=attn, mlp=mlp, norm=norm, norm_last=c.norm_last, layer_scale=scale, dtype=c.dtype
        )

    def runs(self):
        """The lengths of runs of blocks of one structure, where the blocks differ, or None."""

    def block_inputs(self):
        """What each block gets beside the tokens: a tree of arrays with a leading axis of blocks, or None."""

    def block_context(self, train=None):
        """What all blocks get beside the tokens, arrays, before what each gets of its own."""
        return ()

    def make_attention(self, index):
        """Its token mixer."""
        c = self.config
        return Attention(
            c.embed_dim, c.num_heads, qkv_bias=c.qkv_bias, qk_norm=self.make_norm if c.qk_norm else None,
            norm=self.make_norm if c.attn_norm else None, attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate,
            dtype=c.dtype,
        )  # fmt: skip

    def make_mlp(self, index):
        """Its channel mixer."""
        c = self.config
        kw = dict(norm=self.make_norm if c.mlp_norm else None, drop=c.proj_drop_rate, dtype=c.dtype)
        hidden = int(c.embed_dim * c.mlp_ratio)
        if c.mlp == "swiglu":
            return GatedMlp(c.embed_dim, hidden // 2, **kw)
        return Mlp(c.embed_dim, hidden, act=ACT[c.act], **kw)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, prefix + N, C]: the class token, DeiT's second, registers, the patches.

        They are normalised unless that follows pooling. pyramid=True gives the maps [B, H/p, W/p, C] after the blocks
        in `out_indices` instead, not normalised.
        """
        x = self.patch_embed(images)
        B, H, W, C = x.shape
        if self.grid != (H, W):
            here = f"images give {(H, W)} patches, the model has positions for {self.grid}"
            raise InputError(f"{here}: create_model(..., img_size={images.shape[1:3]})")
        x = x.reshape(B, H * W, C)
        if self.config.position != "none":
            position = sincos_2d(H, W, C)[None] if self.pos_embed is None else self.pos_embed[...]
            position = position.astype(x.dtype)
            x = x + position[:, self.placed :]
        if self.prefix:
            tokens = (token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None)
            tokens = jnp.concatenate([token[...].astype(x.dtype) for token in tokens], axis=1)
            tokens = tokens + position[:, : self.placed] if self.placed else tokens
            x = jnp.concatenate([jnp.broadcast_to(tokens, (B, self.prefix, C)), x], axis=1)
        x = dropout(x, self.config.pos_drop_rate, train)
        x = self.norm_pre(x) if self.norm_pre else x
        context = self.block_context(train)
        if pyramid:
            _, maps = self.blocks(x, train, *context, each=self.block_inputs(), collect=self.indices(out_indices))
            return [m[:, self.prefix :].reshape(B, H, W, C) for m in maps]
        x = self.blocks(x, train, *context, each=self.block_inputs())
        return self.norm(x) if self.norm else x

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or pooled features [B, C] without a head."""
        c = self.config
        if c.distilled:
            return self.two_heads(*(dropout(x[:, i], c.drop_rate, train) for i in range(2)), train)
        if c.global_pool == "token":
            x = x[:, 0]
        else:
            x = x if self.attn_pool and self.pool_all else x[:, self.prefix :]
            x = self.attn_pool(x) if self.attn_pool else x.mean(axis=1)
        x = dropout(self.fc_norm(x) if self.fc_norm else x, c.drop_rate, train)
        return self.head(x) if self.head else x

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grid, self.placed) if leaf == "pos_embed" else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        return block_groups(
            r"^(patch_embed|(cls|dist|reg)_token|pos_embed|norm_pre|rope|shared_rel_pos)", {"blocks": self.blocks}
        )
