"""Sapiens2 (2026, arXiv:2604.21681): ViTs that learned from images of people, at 1024 x 768 pixels.

DINOv3's positions, norms that only rescale, also of queries and keys, gated networks, and in the blocks between the
first and the last ones fewer heads of keys and values than of queries. Attention alone has a layer scale. Official
repository: facebookresearch/sapiens2, whose code takes the positions' sines in bfloat16; here as in timm in float32.
"""

import dataclasses
import functools

from vision_jax.layers.grouped_query_attention import GroupedQueryAttention
from vision_jax.layers.linear import Linear
from vision_jax.layers.rms_norm import RMSNorm
from vision_jax.layers.rotary import Rotary
from vision_jax.models.eva.model import Eva, EvaConfig
from vision_jax.models.vit import settle
from vision_jax.parameters import Damped, trunc_normal
from vision_jax.registry import IMAGENET_MEAN, IMAGENET_STD, check, register


@dataclasses.dataclass(frozen=True)
class Sapiens2Config(EvaConfig):
    """A Sapiens2.

    Attributes:
      num_kv_heads: heads of keys and values in the blocks between; divides num_heads.
      full_blocks: so many blocks at either end have as many as of queries.
    """

    img_size: int | tuple = (1024, 768)
    mlp: str = "swiglu"
    reg_tokens: int = 8
    global_pool: str = "token"
    position: str = "none"
    rotary: str | None = "centred"
    rotary_temperature: float = 100.0
    rotary_rescale: float = 2.0
    key_bias: bool = True
    layer_scale_init: float | None = 1.0
    num_kv_heads: int = 6
    full_blocks: int = 8

    def __post_init__(self):
        super().__post_init__()
        settle(self, mlp="swiglu", position="none", rotary="centred", key_bias=True, mlp_norm=False, attn_norm=False)
        settle(self, norm_last=False)
        heads, shared = self.num_heads, self.num_kv_heads
        check(heads % shared == 0, f"num_heads={heads} must be a multiple of num_kv_heads={shared}")


class Sapiens2(Eva):
    """Images [B, H, W, C] -> features [B, C], or logits."""

    @property
    def torch_names(self):
        """timm's: queries, keys and values apart."""
        names = ((r"\.ls1\.gamma$", ".gamma_1"), (r"\.attn\.q\.", ".attn.q_proj."))
        return {"timm": (*names, (r"\.attn\.kv\.", (".attn.k_proj.", ".attn.v_proj.")))}

    def runs(self):
        """The lengths of runs of blocks of one structure: the first, those between, the last."""
        c = self.config
        between = c.depth - 2 * c.full_blocks
        return (c.full_blocks, between, c.full_blocks) if between > 0 and c.num_kv_heads < c.num_heads else None

    def make_norm(self, dim):
        """The norm of all layers."""
        return RMSNorm(dim, epsilon=self.config.norm_epsilon, dtype=self.config.dtype)

    def make_attention(self, index):
        """The token mixer of a block."""
        c = self.config
        between = c.full_blocks <= index < c.depth - c.full_blocks
        rotary = Rotary(self.grid, self.prefix, c.rotary_temperature, centred=True, halves=True)
        return GroupedQueryAttention(
            c.embed_dim, c.num_heads, c.num_kv_heads if between else c.num_heads, qkv_bias=c.qkv_bias,
            qk_norm=self.make_norm, rotary=rotary, attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate,
            linear=functools.partial(Linear, init=Damped(trunc_normal)), dtype=c.dtype,
        )  # fmt: skip

    def make_block(self, index):
        """One of the blocks; its MLP has no layer scale."""
        block = super().make_block(index)
        block.ls2 = None
        return block


for size, params, gmacs, embed_dim, depth, num_heads in (  # multiply-adds as counted here
    ("base", 113_993_472, 525.69, 768, 12, 12),
    ("large", 395_450_368, 1683.72, 1024, 24, 16),
    ("huge", 814_283_520, 3284.41, 1280, 32, 16),
    ("giant", 1_455_474_176, 5647.77, 1536, 40, 24),
    ("5b", 5_066_902_976, 18190.21, 2432, 56, 32),
):
    register(
        f"vit_{size}_patch16_sapiens2",
        Sapiens2,
        Sapiens2Config(
            embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_kv_heads=num_heads // 2, num_classes=0
        ),
        params=params, gmacs=gmacs, paper="2604.21681", licence="sapiens2-license", tags=("fb",), crop_pct=1.0,
        crop_mode="squash", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip
