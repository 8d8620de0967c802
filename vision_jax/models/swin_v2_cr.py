"""Swin V2 as Christoph Reich wrote it from the paper, before its code was released (timm's `swinv2_cr_*`).

Swin V2 (Liu et al., 2022, arXiv:2111.09883) but for what the paper leaves open: offsets are counted in tokens, and what
the network of them gives is the bias as it is; keys have a bias; patches are merged as in Swin; windows are an eighth
of the first map, so that they grow with the image. The last map is normalised in its stage, in the "ns" variants each
stage's is; in the largest every sixth block's output is, as the paper has it.

Original code: ChristophReich1996/Swin-Transformer-V2; compared here with timm's.
"""

import dataclasses
import functools
import math

from vision_jax.layers.attention import QKV
from vision_jax.layers.block import Block
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import normalise
from vision_jax.layers.patch import PatchMerging
from vision_jax.layers.relative_bias import RelativeBiasMlp
from vision_jax.models.base import patch_grid
from vision_jax.models.swin import SIZES, SwinConfig
from vision_jax.models.swin_v2 import CosineWindowAttention, SwinTransformerV2
from vision_jax.parameters import Constant, param, torch_default
from vision_jax.registry import check, register

_INIT = dict(init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class SwinV2CrConfig(SwinConfig):
    """A Swin V2-CR.

    Attributes:
      window_size: None for an eighth of the first map's height and width.
      stage_norms: normalise each stage's last map, not the last stage's alone.
      norm_period: every so many blocks of a stage the output is normalised; 0 for none.
      position_hidden, position_drop_rate: hidden features of the network of offsets, and their dropout.
    """

    window_size: int | tuple | None = None
    stage_norms: bool = False
    norm_period: int = 0
    position_hidden: int = 384
    position_drop_rate: float = 0.125

    def __post_init__(self):
        super().__post_init__()
        check(self.window_sizes is None, f"window_sizes={self.window_sizes!r}: all stages have one window_size here")


class OffsetWindowAttention(CosineWindowAttention):
    """Attention by cosines whose bias a network of offsets gives, [B, H, W, C] -> [B, H, W, C].

    Args:
      dim, num_heads, window_size, shift, proj_drop, dtype: as of `CosineWindowAttention`.
      hidden, drop: of the network.
    """

    def __init__(self, dim, num_heads, window_size, shift, *, hidden, drop, proj_drop, dtype):
        self.window_size, self.shift, self.proj_drop = tuple(window_size), tuple(shift), proj_drop
        self.qkv = QKV(dim, num_heads, dim // num_heads, dtype=dtype, **_INIT)
        self.logit_scale = param((num_heads,), Constant(math.log(10)))
        self.rel_pos = RelativeBiasMlp(num_heads, self.window_size, hidden=hidden, drop=drop, dtype=dtype, **_INIT)
        self.proj = Linear(dim, dim, dtype=dtype, **_INIT)

    def project(self, x):
        """Queries, keys and values, [B, H, W, heads, head_dim] each."""
        return self.qkv(x)

    def position_bias(self, train=None):
        """What the scores gain, [heads, N, N]."""
        return self.rel_pos(train)


class NormedBlock(Block):
    """A block whose output is normalised, main branch and all, where `norm3` is set."""

    norm3 = None

    def __call__(self, x, train=None):
        return normalise(self.norm3, super().__call__(x, train))


class SwinTransformerV2Cr(SwinTransformerV2):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    inert = (r"\.rel_pos\.mlp\.fc2\.bias$",)  # a number a head that all scores gain
    torch_ignore = ()
    _linear = functools.partial(Linear, **_INIT)

    @property
    def torch_names(self):
        """timm's: a stage's norm belongs to its last block."""
        depths = self.config.depths

        def last(match):
            return f"stages.{match[1]}.blocks.{depths[int(match[1])] - 1}.norm3."

        names = ((r"^head\.", "head.fc."), (r"\.rel_pos\.mlp\.", ".meta_mlp."))
        return {"timm": (*names, (r"^stages\.(\d+)\.norm\.", last))}

    def _window(self, stage):
        c = self.config
        wanted = tuple(max(n // 8, 1) for n in patch_grid(c.img_size, c.patch_size))
        return wanted if c.window_size is None else super()._window(stage)

    def _period(self):
        return math.lcm(2, self.config.norm_period or 2)

    def _stage_norm(self, stage, dim):
        c = self.config
        in_block = c.norm_period and c.depths[stage] % c.norm_period == 0
        wanted = c.stage_norms or stage + 1 == len(c.depths)
        return self._norm(dim) if wanted and not in_block else None

    def _last_norm(self, dim):
        return None

    def _stage_block(self, stage, dim, grid, index):
        block, period = super()._stage_block(stage, dim, grid, index), self.config.norm_period
        if period and (index + 1) % period == 0:
            block.norm3 = self._norm(dim)
        return block

    def _block(self, stage, dim, window, shift):
        c = self.config
        attn = OffsetWindowAttention(
            dim, c.num_heads[stage], window, shift, hidden=c.position_hidden, drop=c.position_drop_rate,
            proj_drop=c.proj_drop_rate, dtype=c.dtype,
        )  # fmt: skip
        mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, linear=self._linear, dtype=c.dtype)
        return NormedBlock(dim, attn=attn, mlp=mlp, norm=self._silent_norm, norm_last=True, dtype=c.dtype)

    def _merging(self, din, dout):
        return PatchMerging(din, dout, norm=self._norm, linear=self._linear, dtype=self.config.dtype)


_LARGEST = {  # size -> (embed_dim, depths, num_heads) of each image size
    ("huge", 224): (352, (2, 2, 18, 2), (8, 16, 32, 64)),
    ("huge", 384): (352, (2, 2, 18, 2), (11, 22, 44, 88)),
    ("giant", 224): (512, (2, 2, 42, 2), (16, 32, 64, 128)),
    ("giant", 384): (512, (2, 2, 42, 2), (16, 32, 64, 128)),
}


def _swin_v2_cr(size, img_size, params, gmacs, *tags, norms=""):
    embed_dim, depths, num_heads = SIZES.get(size) or _LARGEST[size, img_size]
    config = SwinV2CrConfig(
        img_size=img_size, embed_dim=embed_dim, depths=depths, num_heads=num_heads, stage_norms=bool(norms),
        norm_period=0 if size in SIZES else 6,
    )  # fmt: skip
    register(
        f"swinv2_cr_{size}_{norms}{img_size}", SwinTransformerV2Cr, config, params=params, gmacs=gmacs,
        paper="2111.09883", licence="apache-2.0", crop_pct=0.9 if img_size == 224 else 1.0, tags=tags or ("",),
    )  # fmt: skip


_swin_v2_cr("tiny", 224, 28_332_124, 4.66)
_swin_v2_cr("tiny", 384, 28_332_124, 15.34)
_swin_v2_cr("tiny", 224, 28_333_468, 4.66, "sw_in1k", norms="ns_")
_swin_v2_cr("small", 224, 49_695_100, 9.07, "sw_in1k")
_swin_v2_cr("small", 384, 49_695_100, 29.70)
_swin_v2_cr("small", 224, 49_696_444, 9.08, "sw_in1k", norms="ns_")
_swin_v2_cr("small", 256, 49_696_444, 12.07, norms="ns_")
_swin_v2_cr("base", 224, 87_877_464, 15.86)
_swin_v2_cr("base", 384, 87_877_464, 50.57)
_swin_v2_cr("base", 224, 87_879_256, 15.86, norms="ns_")
_swin_v2_cr("large", 224, 196_682_512, 35.10)
_swin_v2_cr("large", 384, 196_682_512, 108.96)
_swin_v2_cr("huge", 224, 657_829_928, 115.97)
_swin_v2_cr("huge", 384, 657_938_780, 352.04)
_swin_v2_cr("giant", 224, 2_598_761_896, 483.85)
_swin_v2_cr("giant", 384, 2_598_761_896, 1450.71)
