"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., 2021, arXiv:2106.08254).

A ViT that was trained to tell the visual words of patches it did not see. No position is added to the tokens: in every
block the scores gain a bias of relative positions, the class token's among them. Keys have no bias of their own.
BEiT v2 (Peng et al., 2022, arXiv:2208.06366) is the same network, with words from a better tokeniser.

Official repository: microsoft/unilm; compared here with timm's. The pre-training networks, whose blocks share one table
of biases, are not here: the published fine-tuned ones have a copy in each block.
"""

import dataclasses
import functools
from typing import ClassVar

from vision_jax.layers.attention import Attention, FreeKeysQKV
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.relative_bias import ClassRelativeBias
from vision_jax.models.vit import VisionTransformer, ViTConfig, settle
from vision_jax.parameters import Damped, Normal, trunc_normal
from vision_jax.registry import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, register


@dataclasses.dataclass(frozen=True)
class BeitConfig(ViTConfig):
    """A BEiT: a ViT whose positions are relative, averaged over the patches."""

    global_pool: str = "avg"
    position: str = "none"
    layer_scale_init: float | None = 1e-5

    def __post_init__(self):
        super().__post_init__()
        settle(self, class_token=True, distilled=False, reg_tokens=0, position="none")
        settle(self, mlp="mlp", act="gelu", qk_norm=False, attn_norm=False, mlp_norm=False)


class Beit(VisionTransformer):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    inert = ()
    torch_names: ClassVar = {
        "timm": (
            (r"\.attn\.qkv\.bias$", (".attn.q_bias", ".attn.v_bias")),
            (r"\.attn\.rel_pos\.", ".attn."),
            (r"\.ls(\d)\.gamma$", r".gamma_\1"),
        )
    }
    linen_names: ClassVar = {}
    torch_ignore = (r"\.relative_position_index$",)
    token_init, head_init = trunc_normal, Normal(2e-5)

    def make_attention(self, index):
        """The token mixer of a block."""
        c = self.config
        return Attention(
            c.embed_dim, c.num_heads, qkv_bias=c.qkv_bias, attn_drop=c.attn_drop_rate,
            rel_pos=ClassRelativeBias(c.num_heads, self.grid), proj_drop=c.proj_drop_rate,
            qkv=FreeKeysQKV, linear=functools.partial(Linear, init=Damped(trunc_normal)), dtype=c.dtype,
        )  # fmt: skip

    def make_mlp(self, index):
        """The channel mixer of a block."""
        c, last = self.config, functools.partial(Linear, init=Damped(trunc_normal))
        return Mlp(c.embed_dim, int(c.embed_dim * c.mlp_ratio), drop=c.proj_drop_rate, last=last, dtype=c.dtype)


_BASE = dict(embed_dim=768, depth=12, num_heads=12)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
_WORDS = dict(num_classes=21_841)


def _beit(name, img_size, params, gmacs, tags, *, paper="2106.08254", mean=INCEPTION_MEAN, std=INCEPTION_STD, **fields):
    register(
        f"{name}_patch16_{img_size}", Beit, BeitConfig(img_size=img_size, **fields), params=params, gmacs=gmacs,
        paper=paper, licence="apache-2.0", crop_pct=0.9 if img_size == 224 else 1.0, mean=mean, std=std, tags=tags,
    )  # fmt: skip


_IN1K, _IN22K = "in22k_ft_in22k_in1k", "in22k_ft_in22k"
_beit("beit_base", 224, 86_530_984, 17.58, {_IN1K: {}, _IN22K: _WORDS}, layer_scale_init=0.1, **_BASE)
_beit("beit_base", 384, 86_744_104, 55.54, (_IN1K,), layer_scale_init=0.1, **_BASE)
_beit("beit_large", 224, 304_430_568, 61.60, {_IN1K: {}, _IN22K: _WORDS}, **_LARGE)
_beit("beit_large", 384, 304_998_888, 191.21, (_IN1K,), **_LARGE)
_beit("beit_large", 512, 305_674_728, 362.24, (_IN1K,), **_LARGE)

_V2 = dict(paper="2208.06366", mean=IMAGENET_MEAN, std=IMAGENET_STD)
_TAGS = {"in1k_ft_in22k_in1k": {}, "in1k_ft_in1k": {}, "in1k_ft_in22k": _WORDS}
_LARGE_TAGS = {tag: dict(crop_pct=0.9 if own else 0.95, **own) for tag, own in _TAGS.items()}
_beit("beitv2_base", 224, 86_530_984, 17.58, _TAGS, **_BASE, **_V2)
_beit("beitv2_large", 224, 304_430_568, 61.60, _LARGE_TAGS, **_LARGE, **_V2)
