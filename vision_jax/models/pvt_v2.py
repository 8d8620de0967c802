"""PVT v2: Improved Baselines with Pyramid Vision Transformer (Wang et al., 2022, arXiv:2106.13797).

Four stages of transformer blocks on ever smaller maps. Queries come from every position, keys and values from a map
shrunk by a convolution, so that attention is affordable at high resolution. Over PVT, patches overlap and the
feed-forward networks hold a depthwise convolution, whose padding replaces the position embeddings; the `_li` variants
shrink by averaging to 7 x 7, which makes the cost linear. Official repository: whai362/PVT; compared here with timm's,
which computes the same. As there, "linear" attention pools where the paper's text says it, and has a ReLU before the
depthwise convolution that the paper does not mention.
"""

import dataclasses
import functools

from flax import nnx

from vision_jax.layers.block import Block
from vision_jax.layers.depthwise_mlp import DepthwiseMlp
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.reduced_attention import ReducedAttention
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages, stage_groups
from vision_jax.parameters import kaiming_normal, zeros
from vision_jax.registry import register


@dataclasses.dataclass(frozen=True)
class PVTv2Config(ModelConfig):
    """A PVT v2; a number a stage for depths (L), embed_dims (C), num_heads (N), sr_ratios (R) and mlp_ratios (E).

    `linear`: average the keys' map to 7 x 7 instead of shrinking it `sr_ratios` times.
    """

    depths: tuple = (3, 4, 6, 3)
    embed_dims: tuple = (64, 128, 320, 512)
    num_heads: tuple = (1, 2, 5, 8)
    sr_ratios: tuple = (8, 4, 2, 1)
    mlp_ratios: tuple = (8, 8, 4, 4)
    qkv_bias: bool = True
    linear: bool = False
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "num_heads", "sr_ratios", "mlp_ratios")


class Stage(nnx.Module):
    """Shrink, blocks, norm: [B, H, W, Cin] -> [B, H/2, W/2, C], or [B, H, W, C] in the first stage."""

    def __init__(self, c, i, rates):
        dim, kw = c.embed_dims[i], dict(dtype=c.dtype)
        norm = functools.partial(LayerNorm, epsilon=1e-6, **kw)
        self.downsample = overlapping(c.embed_dims[i - 1], dim, 3, 2, c.dtype) if i else None

        def block(index):
            attn = ReducedAttention(
                dim, c.num_heads[i], reduction=c.sr_ratios[i], pool=7 if c.linear else None, qkv_bias=c.qkv_bias,
                attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate, init=kaiming_normal, **kw,
            )  # fmt: skip
            mlp = DepthwiseMlp(dim, int(dim * c.mlp_ratios[i]), relu=c.linear, drop=c.proj_drop_rate, **kw)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, **kw)

        self.blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(dim)

    def __call__(self, x, train=None):
        x = self.downsample(x) if self.downsample else x
        return self.norm(self.blocks(x, train))


def overlapping(din, dim, patch_size, stride, dtype):
    """Patches that overlap, the image padded with zeros by half a patch."""
    return PatchEmbed(
        din, dim, patch_size, stride=stride, padding=patch_size // 2, init=kaiming_normal, bias_init=zeros,
        norm=functools.partial(LayerNorm, epsilon=1e-5, dtype=dtype), dtype=dtype,
    )  # fmt: skip


class PyramidVisionTransformerV2(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    inert = (r"attn\.kv\.bias\[0\]$",)  # what is added to every key adds one number to all scores of a query

    def __init__(self, config):
        c = self.config = config
        self.patch_embed = overlapping(c.in_chans, c.embed_dims[0], 7, 4, c.dtype)
        rates = linear_rates(c.drop_path_rate, c.depths)
        self.stages = nnx.List([Stage(c, i, rates[i]) for i in range(len(c.depths))])
        self.head = Linear(c.embed_dims[-1], c.num_classes, dtype=c.dtype) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C]; pyramid=True: the maps after the stages in `out_indices`."""
        maps = self.run_stages(self.patch_embed(images), train)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else maps[-1]

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=(1, 2)), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^patch_embed")


def _pvt_v2(name, depths, params, gmacs, **fields):
    register(
        name, PyramidVisionTransformerV2, PVTv2Config(depths=depths, **fields), params=params, gmacs=gmacs,
        paper="2106.13797", licence="apache-2.0", tags=("in1k",), crop_pct=0.9,
    )  # fmt: skip


_pvt_v2("pvt_v2_b0", (2, 2, 2, 2), 3_666_760, 0.57, embed_dims=(32, 64, 160, 256))
_pvt_v2("pvt_v2_b1", (2, 2, 2, 2), 14_009_000, 2.12)
_pvt_v2("pvt_v2_b2", (3, 4, 6, 3), 25_362_856, 4.05)
_pvt_v2("pvt_v2_b2_li", (3, 4, 6, 3), 22_553_512, 3.91, linear=True)
_pvt_v2("pvt_v2_b3", (3, 4, 18, 3), 45_238_696, 6.92)
_pvt_v2("pvt_v2_b4", (3, 8, 27, 3), 62_556_072, 10.14)
_pvt_v2("pvt_v2_b5", (3, 6, 40, 3), 81_956_008, 11.76, mlp_ratios=(4, 4, 4, 4))
