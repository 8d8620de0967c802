"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021, arXiv:2010.11929).

An image is cut into patches, each projected to a token; a learned position is added and a plain pre-norm transformer
runs over the tokens. Official repository: google-research/vision_transformer; compared here with timm's.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax.numpy as jnp

from vision_jax.errors import InputError
from vision_jax.layers.attention import Attention
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.position import sincos_2d
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model
from vision_jax.parameters import Normal, param, trunc_normal
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A ViT.

    `global_pool`: "token" reads the class token, "avg" averages the patches (then normalised by fc_norm). `position`:
    "learned", or "sincos2d", fixed (Better plain ViT baselines: Beyer et al., 2022, arXiv:2205.01580).
    """

    img_size: int | tuple = 224
    patch_size: int | tuple = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    class_token: bool = True
    global_pool: str = "token"
    position: str = "learned"
    layer_scale_init: float | None = None
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    scan_blocks: bool = False
    remat: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        dim, heads, pool, fixed = self.embed_dim, self.num_heads, self.global_pool, self.position == "sincos2d"
        check(dim % heads == 0, f"embed_dim={dim} must be a multiple of num_heads={heads}")
        check(pool in ("token", "avg"), f"global_pool={pool!r}: one of 'token', 'avg'")
        check(self.class_token or pool != "token", "global_pool='token' needs class_token=True; or use 'avg'")
        check(fixed or self.position == "learned", f"position={self.position!r}: one of 'learned', 'sincos2d'")
        check(not (fixed and self.class_token), "position='sincos2d' is for class_token=False")
        check(not fixed or dim % 4 == 0, f"position='sincos2d' needs embed_dim={dim} to be a multiple of 4")
        for size, patch in zip(pair(self.img_size), pair(self.patch_size), strict=True):
            near = max(round(size / patch), 1) * patch
            given = f"img_size={self.img_size} is not a multiple of patch_size={self.patch_size}"
            check(size % patch == 0, f"{given}; the nearest is {near}")


_HF = (  # the files on the hub, which transformers reads and writes
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", tuple(f".attention.attention.{part}." for part in ("query", "key", "value"))),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
)
_HF_MODULES = (  # its modules in memory, named otherwise since release 5
    *_HF,
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
_BIG_VISION = (
    (r"^cls_token$", "cls"),
    (r"^pos_embed$", "Transformer/posembed_input/pos_embedding"),
    (r"^patch_embed\.proj\.", "embedding/"),
    (r"^blocks\.(\d+)\.", r"Transformer/encoderblock_\1/"),
    (r"norm1\.", "LayerNorm_0/"),
    (r"attn\.qkv\.", tuple(f"MultiHeadDotProductAttention_1/{part}/" for part in ("query", "key", "value"))),
    (r"attn\.proj\.", "MultiHeadDotProductAttention_1/out/"),
    (r"norm2\.", "LayerNorm_2/"),
    (r"mlp\.fc1\.", "MlpBlock_3/Dense_0/"),
    (r"mlp\.fc2\.", "MlpBlock_3/Dense_1/"),
    (r"^norm\.", "Transformer/encoder_norm/"),
    (r"^head\.", "head/"),
)


class VisionTransformer(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$", r"attn\.k_norm\.bias$")
    torch_names: ClassVar = {"timm": (), "hf": _HF, "hf_modules": _HF_MODULES}
    linen_names: ClassVar = {"big_vision": _BIG_VISION}

    def __init__(self, config):
        c = self.config = config
        kw, norm = {"dtype": c.dtype}, functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        self.grid = tuple(s // p for s, p in zip(pair(c.img_size), pair(c.patch_size), strict=True))
        self.patch_embed = PatchEmbed(c.in_chans, c.embed_dim, c.patch_size, **kw)
        self.cls_token = param((1, 1, c.embed_dim), Normal(1e-6)) if c.class_token else None
        tokens = int(c.class_token) + math.prod(self.grid)
        self.pos_embed = param((1, tokens, c.embed_dim), trunc_normal) if c.position == "learned" else None

        def block(index):
            attn = Attention(
                c.embed_dim,
                c.num_heads,
                qkv_bias=c.qkv_bias,
                qk_norm=norm if c.qk_norm else None,
                attn_drop=c.attn_drop_rate,
                proj_drop=c.proj_drop_rate,
                **kw,
            )
            mlp = Mlp(c.embed_dim, int(c.embed_dim * c.mlp_ratio), drop=c.proj_drop_rate, **kw)
            return Block(c.embed_dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, **kw)

        (rates,) = linear_rates(c.drop_path_rate, (c.depth,))
        self.blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(c.embed_dim) if c.global_pool == "token" else None
        self.fc_norm = norm(c.embed_dim) if c.global_pool == "avg" else None
        self.head = Linear(c.embed_dim, c.num_classes, **kw) if c.num_classes else None
        reduction = pair(c.patch_size)[0]
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", c.embed_dim, reduction) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, (1 +) N, C], normalised if the class token is read.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        c, x = self.config, self.patch_embed(images)
        B, H, W, C = x.shape
        if self.grid != (H, W):
            here = f"images give {(H, W)} patches, the model has positions for {self.grid}"
            raise InputError(f"{here}: create_model(..., img_size={images.shape[1:3]})")
        x = x.reshape(B, H * W, C)
        if c.class_token:
            x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, C)), x], axis=1)
        position = sincos_2d(H, W, C)[None] if self.pos_embed is None else self.pos_embed[...]
        x = dropout(x + position.astype(x.dtype), c.pos_drop_rate, train)
        if pyramid:
            _, maps = self.blocks(x, train, collect=self.indices(out_indices))
            return [m[:, int(c.class_token) :].reshape(B, H, W, C) for m in maps]
        x = self.blocks(x, train)
        return self.norm(x) if self.norm else x

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = x[:, 0] if self.norm else self.fc_norm(x[:, int(self.config.class_token) :].mean(axis=1))
        x = dropout(x, self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grid, int(self.config.class_token)) if leaf == "pos_embed" else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        blocks = tuple((rf"^blocks\.{i}\.", i + 1) for i in range(self.config.depth))
        return ((r"^(patch_embed|cls_token|pos_embed)", 0), *blocks, (r"", self.config.depth + 1))


def _vit(name, embed_dim, depth, num_heads, params, gmacs, tags, **fields):
    register(
        name, VisionTransformer, ViTConfig(embed_dim=embed_dim, depth=depth, num_heads=num_heads, **fields),
        params=params, gmacs=gmacs, paper="2010.11929", licence="apache-2.0", tags=tags,
        mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.9,
    )  # fmt: skip


_vit("vit_tiny_patch16_224", 192, 12, 3, 5_717_416, 1.26, ("augreg_in21k_ft_in1k",))
_vit("vit_small_patch16_224", 384, 12, 6, 22_050_664, 4.61, ("augreg_in21k_ft_in1k",))
_vit("vit_base_patch16_224", 768, 12, 12, 86_567_656, 17.58, ("augreg2_in21k_ft_in1k",))
_vit("vit_large_patch16_224", 1024, 24, 16, 304_326_632, 61.60, ("augreg_in21k_ft_in1k",))
