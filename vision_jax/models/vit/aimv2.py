"""AIMv2's image encoders: Multimodal Autoregressive Pre-training of Large Vision Encoders (arXiv:2411.14402).

Fini et al., 2024: a ViT whose norms only rescale, one of them on the patches, with gated networks and without biases;
it learned to tell an image's patches and its caption one after the other. Official repository: apple/ml-aim.
"""

import dataclasses
import functools
from typing import ClassVar

from vision_jax.layers.attention import Attention
from vision_jax.layers.glu import GLU, GatedMlp, Halves
from vision_jax.layers.linear import Linear
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.rms_norm import RMSNorm
from vision_jax.models.vit.model import VisionTransformer, ViTConfig, settle
from vision_jax.parameters import Normal, trunc_normal
from vision_jax.registry import CLIP_MEAN, CLIP_STD, register


@dataclasses.dataclass(frozen=True)
class AIMv2Config(ViTConfig):
    """An AIMv2."""

    patch_size: int | tuple = 14
    mlp: str = "swiglu"
    qkv_bias: bool = False
    class_token: bool = False
    global_pool: str = "avg"
    fc_norm: bool | None = False
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        settle(self, mlp="swiglu", act="gelu", qkv_bias=False, qk_norm=False, attn_norm=False, mlp_norm=False)
        settle(self, norm_last=False, pre_norm=False)


class AIMv2(VisionTransformer):
    """Images [B, H, W, C] -> features [B, C], or logits."""

    inert = ()
    torch_names: ClassVar = {"timm": ((r"\.mlp\.fc1\.", (".mlp.fc1_g.", ".mlp.fc1_x.")),)}
    linen_names: ClassVar = {}

    def make_patch_embed(self):
        """Images [B, H, W, C] -> the map of patches [B, H/p, W/p, dim]."""
        c = self.config
        return PatchEmbed(c.in_chans, c.embed_dim, c.patch_size, norm=self.make_norm, dtype=c.dtype)

    def make_norm(self, dim):
        """The norm of all layers."""
        return RMSNorm(dim, epsilon=self.config.norm_epsilon, dtype=self.config.dtype)

    def make_attention(self, index):
        """The token mixer of a block."""
        c = self.config
        rates = dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
        return Attention(c.embed_dim, c.num_heads, qkv_bias=False, proj_bias=False, **rates, dtype=c.dtype)

    def make_mlp(self, index):
        """The channel mixer of a block; the gate starts shut but for a trace."""
        c = self.config
        glu = functools.partial(GLU, bias=False, init=Halves(Normal(1e-6), trunc_normal))
        linear = functools.partial(Linear, bias=False)
        hidden = int(c.embed_dim * c.mlp_ratio)
        return GatedMlp(c.embed_dim, hidden, glu=glu, linear=linear, drop=c.proj_drop_rate, dtype=c.dtype)


_SIZES = {  # width, heads, the MLP's ratio
    "large": (1024, 8, 2.75),
    "huge": (1536, 12, 2.6667),
    "1b": (2048, 16, 2.75),
    "3b": (3072, 24, 2.6667),
}
_ALONE, _DISTILLED = "apple_pt", "apple_pt apple_pt_dist"
for size, img_size, params, gmacs, tags in (
    ("large", 224, 309_197_824, 82.30, _DISTILLED),
    ("large", 336, 309_525_504, 194.22, _DISTILLED),
    ("large", 448, 309_984_256, 367.84, _ALONE),
    ("huge", 224, 680_851_968, 179.01, _ALONE),
    ("huge", 336, 681_343_488, 416.36, _ALONE),
    ("huge", 448, 682_031_616, 774.02, _ALONE),
    ("1b", 224, 1_234_958_336, 322.43, _ALONE),
    ("1b", 336, 1_235_613_696, 743.59, _ALONE),
    ("1b", 448, 1_236_531_200, 1367.03, _ALONE),
    ("3b", 224, 2_720_658_432, 705.91, _ALONE),
    ("3b", 336, 2_721_641_472, 1615.48, _ALONE),
    ("3b", 448, 2_723_017_728, 2939.61, _ALONE),
):
    dim, heads, ratio = _SIZES[size]
    register(
        f"aimv2_{size}_patch14_{img_size}", AIMv2,
        AIMv2Config(img_size=img_size, embed_dim=dim, depth=24, num_heads=heads, mlp_ratio=ratio, num_classes=0),
        params=params, gmacs=gmacs, paper="2411.14402", licence="apple-ascl", tags=tags.split(), crop_pct=1.0,
        mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
