"""MLP-Mixer: An all-MLP Architecture for Vision (Tolstikhin et al., 2021, arXiv:2105.01601).

Patches become tokens; two MLPs alternate, one across the tokens of each channel, one across the channels of each token.
There are no positions: the first one's weights know the place, so a model is bound to its image size. Official
repository: google-research/vision_transformer; compared here with timm's. The paper drops branches with a rate that
grows with depth; as in timm every block has the same.
"""

import dataclasses
import functools
import math
from typing import ClassVar

from vision_jax.errors import InputError
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, patch_grid
from vision_jax.parameters import Normal, lecun_normal, xavier_uniform, zeros
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register


@dataclasses.dataclass(frozen=True)
class MixerConfig(ModelConfig):
    """A Mixer. `mlp_ratio`: hidden features of the tokens' MLP and of the channels', as multiples of `embed_dim`."""

    patch_size: int | tuple = 16
    embed_dim: int = 512
    depth: int = 8
    mlp_ratio: tuple = (0.5, 4.0)
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        patch_grid(self.img_size, self.patch_size)
        check(len(pair(self.mlp_ratio)) == 2, f"mlp_ratio={self.mlp_ratio}: two numbers, of tokens and of channels")


class TokenMlp(Mlp):
    """An MLP across the tokens, the same for every channel, [B, N, C] -> [B, N, C] (equation 1, first line)."""

    def __call__(self, x, train=None):
        return super().__call__(x.swapaxes(1, 2), train).swapaxes(1, 2)


class MlpMixer(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
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
        c = self.config = config
        kw, norm = {"dtype": c.dtype}, functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        self.grid = patch_grid(c.img_size, c.patch_size)
        self.patch_embed = PatchEmbed(
            c.in_chans, c.embed_dim, c.patch_size, init=lecun_normal, bias_init=zeros, **kw
        )  # fmt: skip
        linear = functools.partial(Linear, init=xavier_uniform, bias_init=Normal(1e-6))
        tokens, channels = (int(c.embed_dim * ratio) for ratio in pair(c.mlp_ratio))

        def block(index):
            across = TokenMlp(math.prod(self.grid), tokens, drop=c.proj_drop_rate, linear=linear, **kw)
            within = Mlp(c.embed_dim, channels, drop=c.proj_drop_rate, linear=linear, **kw)
            return Block(c.embed_dim, attn=across, mlp=within, norm=norm, **kw)

        self.blocks = Stack(block, (c.drop_path_rate,) * c.depth, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(c.embed_dim)
        self.head = Linear(c.embed_dim, c.num_classes, init=zeros, **kw) if c.num_classes else None
        reduction = pair(c.patch_size)[0]
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", c.embed_dim, reduction) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, N, C], normalised.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        x = self.patch_embed(images)
        B, H, W, C = x.shape
        if self.grid != (H, W):
            here = f"images give {(H, W)} patches, the model mixes {self.grid}"
            raise InputError(f"{here}: create_model(..., img_size={images.shape[1:3]})")
        x = x.reshape(B, H * W, C)
        if pyramid:
            _, maps = self.blocks(x, train, collect=self.indices(out_indices))
            return [m.reshape(B, H, W, C) for m in maps]
        return self.norm(self.blocks(x, train))

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=1), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        blocks = tuple((rf"^blocks\.{i}\.", i + 1) for i in range(self.config.depth))
        return ((r"^patch_embed", 0), *blocks, (r"", self.config.depth + 1))


def _mixer(name, patch_size, embed_dim, depth, params, gmacs, tags=("",)):
    register(
        name, MlpMixer, MixerConfig(patch_size=patch_size, embed_dim=embed_dim, depth=depth),
        params=params, gmacs=gmacs, paper="2105.01601", licence="apache-2.0", tags=tags,
        mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.875,
    )  # fmt: skip


_GOOGLE = {"goog_in21k_ft_in1k": {}, "goog_in21k": {"num_classes": 21_843}}
_MIIL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}

_mixer("mixer_s32_224", 32, 512, 8, 19_104_624, 1.00)
_mixer("mixer_s16_224", 16, 512, 8, 18_528_264, 3.79)
_mixer("mixer_b32_224", 32, 768, 12, 60_293_428, 3.24)
_mixer(
    "mixer_b16_224", 16, 768, 12, 59_880_472, 12.62,
    {**_GOOGLE, "miil_in21k": {**_MIIL, "num_classes": 11_221}, "miil_in21k_ft_in1k": _MIIL},
)  # fmt: skip
_mixer("mixer_l32_224", 32, 1024, 24, 206_939_264, 11.27)
_mixer("mixer_l16_224", 16, 1024, 24, 208_196_168, 44.60, _GOOGLE)
