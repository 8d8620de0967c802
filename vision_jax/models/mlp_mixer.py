"""MLP-Mixer: An all-MLP Architecture for Vision (Tolstikhin et al., 2021, arXiv:2105.01601).

Patches become tokens; two MLPs alternate, one across the tokens of each channel, one across the channels of each token.
There are no positions: the first one's weights know the place, so a model is bound to its image size. Official
repository: google-research/vision_transformer; compared here with timm's. The paper drops branches with a rate that
grows with depth; as in timm every block has the same. The `gmixer` variants are timm's, with gates in both MLPs.
"""

import dataclasses
import functools
import math
from typing import ClassVar

from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.glu import GLU, GatedMlp, Halves
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.models.base import ModelConfig, PatchModel, patch_grid
from vision_jax.parameters import Normal, ones, xavier_uniform
from vision_jax.registry import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, check, register


@dataclasses.dataclass(frozen=True)
class MixerConfig(ModelConfig):
    """A Mixer.

    `mlp_ratio`: hidden features of the tokens' MLP and of the channels', as multiples of `embed_dim`; `mlp`: "mlp", or
    "swiglu", whose two halves share them.
    """

    patch_size: int | tuple = 16
    embed_dim: int = 512
    depth: int = 8
    mlp_ratio: tuple = (0.5, 4.0)
    mlp: str = "mlp"
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        patch_grid(self.img_size, self.patch_size)
        check(len(pair(self.mlp_ratio)) == 2, f"mlp_ratio={self.mlp_ratio}: two numbers, of tokens and of channels")
        check(self.mlp in ("mlp", "swiglu"), f"mlp={self.mlp!r}: one of 'mlp', 'swiglu'")


class AcrossTokens:
    """Before a network of channels: it works on the tokens, the same for every channel, [B, N, C] -> [B, N, C]."""

    def __call__(self, x, train=None):
        return super().__call__(x.swapaxes(1, 2), train).swapaxes(1, 2)


class TokenMlp(AcrossTokens, Mlp):
    """An MLP across the tokens (equation 1, first line)."""


class TokenGatedMlp(AcrossTokens, GatedMlp):
    """A gated one."""


_LINEAR = functools.partial(Linear, init=xavier_uniform, bias_init=Normal(1e-6))
_GLU = functools.partial(
    GLU, init=Halves(xavier_uniform, Normal(1e-6)), bias_init=Halves(Normal(1e-6), ones)
)  # fmt: skip


class MlpMixer(PatchModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {
        "timm": ((r"^patch_embed\.", "stem."), (r"\.attn\.", ".mlp_tokens."), (r"\.mlp\.", ".mlp_channels."))
    }
    linen_names: ClassVar = {
        "official": (
            (r"^patch_embed\.proj\.", "stem/"),
            (r"^blocks\.(\d+)\.", r"MixerBlock_\1/"),
            (r"norm1\.", "LayerNorm_0/"),
            (r"norm2\.", "LayerNorm_1/"),
            (r"attn\.fc1\.", "token_mixing/Dense_0/"),
            (r"attn\.fc2\.", "token_mixing/Dense_1/"),
            (r"mlp\.fc1\.", "channel_mixing/Dense_0/"),
            (r"mlp\.fc2\.", "channel_mixing/Dense_1/"),
            (r"^norm\.", "pre_head_layer_norm/"),
            (r"^head\.", "head/"),
        )
    }

    def __init__(self, config):
        c, norm = config, functools.partial(LayerNorm, epsilon=1e-6, dtype=config.dtype)
        kw, share = dict(linear=_LINEAR, drop=c.proj_drop_rate, dtype=c.dtype), 1
        across, within = TokenMlp, Mlp
        if c.mlp == "swiglu":
            across, within, share = TokenGatedMlp, GatedMlp, 2
            kw |= dict(gate_last=True, glu=_GLU)
        tokens, channels = (int(c.embed_dim * ratio) // share for ratio in pair(c.mlp_ratio))
        count = math.prod(patch_grid(c.img_size, c.patch_size))

        def block(index):
            attn, mlp = across(count, tokens, **kw), within(c.embed_dim, channels, **kw)
            return Block(c.embed_dim, attn=attn, mlp=mlp, norm=norm, dtype=c.dtype)

        super().__init__(config, block, norm)


def _mixer(name, patch_size, embed_dim, depth, params, gmacs, tags=("",), mean=INCEPTION_MEAN, std=INCEPTION_STD, **kw):
    config = MixerConfig(patch_size=patch_size, embed_dim=embed_dim, depth=depth, **kw)
    register(
        name, MlpMixer, config, params=params, gmacs=gmacs, paper="2105.01601", licence="apache-2.0", tags=tags,
        mean=mean, std=std, crop_pct=0.875,
    )  # fmt: skip


_GOOGLE = {"goog_in21k_ft_in1k": {}, "goog_in21k": {"num_classes": 21_843}}
_MIIL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
_GATED = dict(mlp="swiglu", mlp_ratio=(1.0, 4.0), mean=IMAGENET_MEAN, std=IMAGENET_STD)

_mixer("mixer_s32_224", 32, 512, 8, 19_104_624, 1.00)
_mixer("mixer_s16_224", 16, 512, 8, 18_528_264, 3.79)
_mixer("mixer_b32_224", 32, 768, 12, 60_293_428, 3.24)
_mixer(
    "mixer_b16_224", 16, 768, 12, 59_880_472, 12.62,
    {**_GOOGLE, "miil_in21k": {**_MIIL, "num_classes": 11_221}, "miil_in21k_ft_in1k": _MIIL},
)  # fmt: skip
_mixer("mixer_l32_224", 32, 1024, 24, 206_939_264, 11.27)
_mixer("mixer_l16_224", 16, 1024, 24, 208_196_168, 44.60, _GOOGLE)
_mixer("gmixer_12_224", 16, 384, 12, 12_701_080, 2.67, **_GATED)
_mixer("gmixer_24_224", 16, 384, 24, 24_721_096, 5.28, ("ra3_in1k",), **_GATED)
