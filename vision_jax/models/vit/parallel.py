"""ViTs whose blocks are wider than one branch, or whose attention is a difference; most of them timm's own training.

- Blocks of two attentions side by side, then two MLPs: Three things everyone should know about Vision Transformers
  (Touvron et al., 2022, arXiv:2203.09795). Official: facebookresearch/deit.
- Attention and MLP side by side, of one norm and one product: Scaling Vision Transformers to 22 Billion Parameters
  (Dehghani et al., 2023, arXiv:2302.05442), at common sizes ("xp", and "p" before a size's name).
- The difference of two softmaxes as attention weights ("d" before the name): Differential Transformer (Ye et al., 2025,
  arXiv:2410.05258). Official: microsoft/unilm, Diff-Transformer.
"""

import dataclasses
import functools
from typing import ClassVar

from vision_jax.layers.differential_attention import DifferentialAttention, lambda_inits
from vision_jax.layers.parallel_block import ParallelBlock, WideBlock
from vision_jax.layers.rms_norm import RMSNorm
from vision_jax.models.vit.model import ACT, VisionTransformer, ViTConfig, settle
from vision_jax.models.vit.rows import register_rows
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check


@dataclasses.dataclass(frozen=True)
class ParallelViTConfig(ViTConfig):
    """A ViT with other blocks.

    Attributes:
      block: "serial", a ViT's; "wide", of two attentions and two MLPs; "parallel", of both branches at once, whose
        one layer scale is of their sum.
      differential: attention weights are the difference of two softmaxes.
      rms_norm: norms only rescale.
    """

    block: str = "serial"
    differential: bool = False
    rms_norm: bool = False

    def __post_init__(self):
        super().__post_init__()
        blocks = ("serial", "wide", "parallel")
        check(self.block in blocks, f"block={self.block!r}: one of {', '.join(map(repr, blocks))}")
        settle(self, mlp="mlp", attn_norm=False, mlp_norm=False, norm_last=False)
        width = self.embed_dim // self.num_heads
        if self.differential:
            settle(self, qk_norm=False)
            check(width % 2 == 0, f"differential=True needs heads of even width, embed_dim / num_heads is {width}")


class ParallelViT(VisionTransformer):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {"timm": ((r"\.difference\.", "."),)}
    linen_names: ClassVar = {}

    def make_norm(self, dim):
        """The norm of all layers."""
        c = self.config
        return RMSNorm(dim, epsilon=c.norm_epsilon, dtype=c.dtype) if c.rms_norm else super().make_norm(dim)

    def block_inputs(self):
        """Where each block's lambda starts, [depth], or None."""
        return lambda_inits(self.config.depth) if self.config.differential else None

    def make_attention(self, index):
        """The token mixer of a block."""
        c = self.config
        if not c.differential:
            return super().make_attention(index)
        rates = dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
        return DifferentialAttention(c.embed_dim, c.num_heads, qkv_bias=c.qkv_bias, **rates, dtype=c.dtype)

    def make_block(self, index):
        """One of the blocks, [B, N, C] -> [B, N, C]."""
        c = self.config
        kw = dict(norm=self.make_norm, layer_scale=c.layer_scale_init, dtype=c.dtype)
        if c.block == "wide":
            attns, mlps = ([make(index) for _ in range(2)] for make in (self.make_attention, self.make_mlp))
            return WideBlock(c.embed_dim, attns=attns, mlps=mlps, **kw)
        if c.block == "parallel":
            return ParallelBlock(
                c.embed_dim, c.num_heads, int(c.embed_dim * c.mlp_ratio), in_bias=c.qkv_bias,
                qk_norm=self.make_norm if c.qk_norm else None, differential=c.differential, act=ACT[c.act],
                attn_drop=c.attn_drop_rate, hidden_drop=c.proj_drop_rate, **kw,
            )  # fmt: skip
        return super().make_block(index)


_register = functools.partial(
    register_rows, model=ParallelViT, config=ParallelViTConfig, mean=INCEPTION_MEAN, std=INCEPTION_STD
)
_register(
    (
        ("vit_small_patch16_18x2_224", 64_665_448, 13.71, ""),
        ("vit_base_patch16_18x2_224", 256_731_880, 52.51, ""),
    ),
    paper="2203.09795", block="wide", depth=18, layer_scale_init=1e-5, crop_pct=0.9,
)  # fmt: skip
_register(
    (
        ("vit_base_patch16_xp_224", 86_512_360, 17.56, ""),
        ("vit_large_patch14_xp_224", 304_057_320, 81.01, ""),
        ("vit_huge_patch14_xp_224", 631_802_600, 167.30, ""),
    ),
    paper="2302.05442", block="parallel", rms_norm=True, qk_norm=True, qkv_bias=False, pre_norm=True,
    no_embed_class=True, crop_pct=0.9,
)  # fmt: skip
_register(
    (
        (
            "vit_dwee_patch16_reg1_gap_256", 13_425_256, 3.83,
            "sbb_nadamuon_in1k sbb_in1k", dict(differential=True),
        ),
        ("vit_pwee_patch16_reg1_gap_256", 15_253_480, 4.37, "sbb_in1k", dict(paper="2302.05442", block="parallel")),
        (
            "vit_dpwee_patch16_reg1_gap_256", 15_252_456, 4.37,
            "sbb_nadamuon_in1k sbb_in1k", dict(block="parallel", differential=True),
        ),
        ("vit_dlittle_patch16_reg1_gap_256", 22_517_736, 6.27, "sbb_nadamuon_in1k", dict(differential=True)),
    ),
    paper="2410.05258", class_token=False, no_embed_class=True, global_pool="avg", layer_scale_init=1e-5, crop_pct=0.95,
)  # fmt: skip
