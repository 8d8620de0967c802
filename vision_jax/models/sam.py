"""SAM's image encoder: Segment Anything (Kirillov et al., 2023, arXiv:2304.02643), a ViT that sees large images.

As in ViTDet (Li et al., 2022, arXiv:2203.16527) a plain ViT attends inside windows, and to the whole map in four blocks
evenly apart; two convolutions, the neck, then give a map of 256 channels for the mask decoder, which is not here. What
a query gains from a key's row and column each query weighs itself (MViTv2: Li et al., 2022, arXiv:2112.01526, section
4.1). Official repository: facebookresearch/segment-anything; compared here with timm's.

Where they differ: norms have an epsilon of 1e-5 in timm and here, of 1e-6 in the official code. Drop path leaves out a
whole image's branch, as in ViTDet; in timm each window's. A window that exceeds the map is padded, never cut.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.attention import QKV
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.relative_query import key_minus_query
from vision_jax.layers.resample import resample_map
from vision_jax.layers.stack import Stack
from vision_jax.layers.window import WindowAttention
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, patch_grid
from vision_jax.parameters import param, torch_default, zeros
from vision_jax.registry import check, register

_TORCH = dict(init=torch_default, bias_init=torch_default)
_Linear = functools.partial(Linear, **_TORCH)


@dataclasses.dataclass(frozen=True)
class SAMConfig(ModelConfig):
    """SAM's image encoder.

    Attributes:
      window_size: side of a window, in tokens.
      global_every: so many blocks apart a block attends to the whole map; the first such ends the first so many.
      position: whether patches have learned positions beside the relative ones.
      neck_chans: channels of the neck; None for a norm in its place.
    """

    img_size: int | tuple = 1024
    patch_size: int | tuple = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int | tuple = 14
    global_every: int = 3
    position: bool = True
    neck_chans: int | None = 256
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        dim, heads = self.embed_dim, self.num_heads
        check(dim % heads == 0, f"embed_dim={dim} must be a multiple of num_heads={heads}")
        check(self.global_every > 0, f"global_every={self.global_every}: at least 1, where every block is global")
        patch_grid(self.img_size, self.patch_size)


class DecomposedWindowAttention(WindowAttention):
    """Self-attention inside windows, [B, H, W, C] -> [B, H, W, C], with a vector for each distance along each axis.

    softmax(q k^T / sqrt(d) + q . r_row + q . r_column) v, r by the query's position minus the key's: two tables, [2h-1,
    d] and [2w-1, d], that all heads share (MViTv2: arXiv:2112.01526, section 4.1).
    """

    def __init__(self, dim, num_heads, window_size, *, proj_drop, dtype):
        qkv = functools.partial(QKV, **_TORCH)
        kw = dict(relative_bias=False, proj_drop=proj_drop, qkv=qkv, linear=_Linear, dtype=dtype)
        super().__init__(dim, num_heads, window_size, **kw)
        self.rel_pos_h, self.rel_pos_w = (param((2 * n - 1, dim // num_heads), zeros) for n in self.window_size)

    def biases(self):
        """What the scores gain, as keywords of `window_attention`."""
        tables = zip((self.rel_pos_h, self.rel_pos_w), self.window_size, strict=True)
        return {"query_bias": tuple(table[...][key_minus_query(n, n).T] for table, n in tables)}

    def resample(self, leaf, array):
        """A table made for another window, at this one's: linear."""
        if not leaf.startswith("rel_pos_"):
            return array
        rows = 2 * self.window_size[leaf == "rel_pos_w"] - 1
        return resample_map(array[None, :, None], (rows, 1), "linear", antialias=False)[0, :, 0]


_NECK = ("conv1", "layer_norm1", "conv2", "layer_norm2")
_HF = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.", "layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.fc", ".mlp.lin"),
    (r"^neck\.(\d)\.", lambda match: f"neck.{_NECK[int(match[1])]}."),
    (r"^(?!head)", "vision_encoder."),
)


class SAMEncoder(Model):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]; `forward_features` gives the image embedding."""

    classifier = ("head.fc",)
    inert = (r"attn\.qkv\.bias\[1\]$",)  # what is added to every key adds one number to all scores of a query
    torch_names: ClassVar = {
        "timm": ((r"^norm\.", "neck."),),
        "official": ((r"\.mlp\.fc", ".mlp.lin"), (r"^(?!head)", "image_encoder.")),
        "hf": _HF,
    }
    torch_ignore = (r"^(prompt_encoder|mask_decoder|shared_image_embedding)\.",)  # the rest of the official files

    def __init__(self, config):
        c = self.config = config
        dim, kw = c.embed_dim, dict(dtype=c.dtype)
        self.grid = patch_grid(c.img_size, c.patch_size)
        self.patch_embed = PatchEmbed(c.in_chans, dim, c.patch_size, **kw)
        self.pos_embed = param((1, *self.grid, dim), zeros) if c.position else None
        (rates,) = linear_rates(c.drop_path_rate, (c.depth,))
        self.blocks = Stack(self._block, rates, period=c.global_every, scan=c.scan_blocks, remat=c.remat)
        norm = functools.partial(LayerNorm, epsilon=1e-6, **kw)
        neck, width = [], c.neck_chans or dim
        if c.neck_chans:
            conv = Conv(width, width, 3, padding=1, bias=False, init=torch_default, **kw)
            neck = [PointwiseConv(dim, width, bias=False, init=torch_default, **kw), norm(width), conv, norm(width)]
        self.neck, self.norm = nnx.List(neck), None if neck else norm(dim)
        self.head = PooledHead(width, c.num_classes, drop=c.drop_rate, classifier=_Linear, **kw)
        reduction = pair(c.patch_size)[0]
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", dim, reduction) for i in range(c.depth))

    def _block(self, index):
        c = self.config
        window = self.grid if (index + 1) % c.global_every == 0 else pair(c.window_size)
        attn = DecomposedWindowAttention(c.embed_dim, c.num_heads, window, proj_drop=c.proj_drop_rate, dtype=c.dtype)
        hidden = int(c.embed_dim * c.mlp_ratio)
        mlp = Mlp(c.embed_dim, hidden, drop=c.proj_drop_rate, linear=_Linear, dtype=c.dtype)
        norm = functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        return Block(c.embed_dim, attn=attn, mlp=mlp, norm=norm, dtype=c.dtype)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/p, W/p, neck_chans].

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead.
        """
        self.check_size(images)
        x = self.patch_embed(images)
        x = x if self.pos_embed is None else x + self.pos_embed[...].astype(x.dtype)
        x = dropout(x, self.config.pos_drop_rate, train)
        if pyramid:
            return self.blocks(x, train, collect=self.indices(out_indices))[1]
        x = self.blocks(x, train)
        for layer in self.neck or [self.norm]:
            x = layer(x)
        return x

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or its mean [B, C] without a head."""
        return self.head(x, train)

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_map(array, self.grid) if leaf == "pos_embed" else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the neck and the head."""
        return block_groups(r"^(patch_embed|pos_embed)", {"blocks": self.blocks})


def _sam(name, params, gmacs, tags=("sa1b",), crop_pct=1.0, **fields):
    register(
        f"samvit_{name}", SAMEncoder, SAMConfig(**fields), params=params, gmacs=gmacs, paper="2304.02643",
        licence="apache-2.0", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_LARGE = dict(embed_dim=1024, depth=24, num_heads=16, global_every=6)
_HUGE = dict(embed_dim=1280, depth=32, num_heads=16, global_every=8)
_sam("base_patch16", 89_670_912, 486.43, num_classes=0)
_sam("large_patch16", 308_278_272, 1493.86, num_classes=0, **_LARGE)
_sam("huge_patch16", 637_026_048, 2982.23, num_classes=0, **_HUGE)
_sam("base_patch16_224", 86_457_064, 17.54, ("",), 0.9, img_size=224, position=False, neck_chans=None)
