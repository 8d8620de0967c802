"""ViTs whose positions are relative, of timm's own training.

An image's patches are one window of Swin V2 (Liu et al., 2022, arXiv:2111.09883, section 3.3): a small network of how
far query and key are apart, on a logarithmic scale, gives what a score gains. Most have no class token; one that is
there gains nothing. In the "srelpos" one such network serves all blocks; in the "rpn" norms follow the branches.
"""

import dataclasses
import functools
from typing import ClassVar

from vision_jax.layers.attention import QKV, Attention
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.relative_bias import RelativeBiasMlp
from vision_jax.models.vit import VisionTransformer, ViTConfig, settle
from vision_jax.models.vit.rows import register_rows
from vision_jax.parameters import torch_default
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD

_INIT = dict(init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class ViTRelPosConfig(ViTConfig):
    """A ViT with relative positions.

    Attributes:
      position_hidden, position_drop_rate: hidden features of the network of offsets, and their dropout.
      shared_position: one such network for all blocks, not one each.
    """

    class_token: bool = False
    global_pool: str = "avg"
    fc_norm: bool | None = False
    position: str = "none"
    layer_scale_init: float | None = 1e-6
    position_hidden: int = 128
    position_drop_rate: float = 0.125
    shared_position: bool = False

    def __post_init__(self):
        super().__post_init__()
        settle(self, distilled=False, reg_tokens=0, position="none", mlp="mlp", act="gelu", qk_norm=False)
        settle(self, attn_norm=False, mlp_norm=False, pre_norm=False, final_norm=True)


class ViTRelPos(VisionTransformer):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    # what all scores of a head gain; those with a class token, which gains nothing, share none
    inert = (*VisionTransformer.inert, r"^shared_rel_pos\.mlp\.fc2\.bias$")
    torch_names: ClassVar = {"timm": ()}
    linen_names: ClassVar = {}
    head_init = head_bias_init = torch_default

    def __init__(self, config):
        super().__init__(config)
        self.shared_rel_pos = self.make_position() if config.shared_position else None

    def make_position(self):
        """(train) -> what the scores gain, [heads, prefix + N, prefix + N]."""
        c = self.config
        drop, hidden = c.position_drop_rate, c.position_hidden
        return RelativeBiasMlp(
            c.num_heads, self.grid, prefix=self.prefix, hidden=hidden, drop=drop, dtype=c.dtype, **_INIT
        )  # fmt: skip

    def block_context(self, train=None):
        """What the scores gain in all blocks, where that is shared."""
        return (self.shared_rel_pos(train),) if self.shared_rel_pos else ()

    def make_attention(self, index):
        """The token mixer of a block."""
        c = self.config
        rel_pos = _given if c.shared_position else self.make_position()
        return Attention(
            c.embed_dim, c.num_heads, qkv_bias=c.qkv_bias, rel_pos=rel_pos, attn_drop=c.attn_drop_rate,
            proj_drop=c.proj_drop_rate, qkv=functools.partial(QKV, **_INIT), linear=functools.partial(Linear, **_INIT),
            dtype=c.dtype,
        )  # fmt: skip

    def make_mlp(self, index):
        """The channel mixer of a block."""
        c, linear = self.config, functools.partial(Linear, **_INIT)
        return Mlp(c.embed_dim, int(c.embed_dim * c.mlp_ratio), drop=c.proj_drop_rate, linear=linear, dtype=c.dtype)


def _given(train, bias):
    """What the scores gain, from the context."""
    return bias


_PLUS = dict(embed_dim=896, num_heads=14, qkv_bias=True)
_CLASS = dict(class_token=True, global_pool="token")
_LAST = dict(norm_last=True)
_SHARED = dict(shared_position=True)
register_rows(
    (
        ("vit_relpos_base_patch32_plus_rpn_256", 119_423_760, 7.68, "sw_in1k", _PLUS | _LAST),
        ("vit_relpos_base_patch16_plus_240", 117_380_880, 27.30, "", _PLUS),
        ("vit_relpos_small_patch16_224", 21_983_920, 4.59, "sw_in1k", dict(fc_norm=True)),
        ("vit_relpos_medium_patch16_224", 38_747_208, 7.97, "sw_in1k", dict(fc_norm=True)),
        ("vit_relpos_base_patch16_224", 86_429_560, 17.51, "sw_in1k", dict(fc_norm=True)),
        ("vit_srelpos_small_patch16_224", 21_973_486, 4.59, "sw_in1k", _SHARED | dict(position_hidden=384)),
        ("vit_srelpos_medium_patch16_224", 38_735_856, 7.96, "sw_in1k", _SHARED | dict(position_hidden=512)),
        ("vit_relpos_medium_patch16_cls_224", 38_764_616, 8.03, "sw_in1k", _CLASS | dict(position_hidden=256)),
        ("vit_relpos_base_patch16_cls_224", 86_430_328, 17.60, "", _CLASS),
        ("vit_relpos_base_patch16_clsgap_224", 86_430_328, 17.60, "sw_in1k", dict(fc_norm=True, class_token=True)),
        ("vit_relpos_small_patch16_rpn_224", 21_974_704, 4.59, "", _LAST),
        ("vit_relpos_medium_patch16_rpn_224", 38_734_920, 7.97, "sw_in1k", _LAST),
        ("vit_relpos_base_patch16_rpn_224", 86_411_128, 17.51, "", _LAST),
    ),
    model=ViTRelPos, config=ViTRelPosConfig, paper="2111.09883", qkv_bias=False, crop_pct=0.9, mean=INCEPTION_MEAN,
    std=INCEPTION_STD,
)  # fmt: skip
