"""ResMLP: Feedforward networks for image classification with data-efficient training (Touvron et al., 2021).

arXiv:2105.03404. Patches become tokens; one linear map across the tokens, the same for every channel, and an MLP of
every token alternate. No norm computes statistics: an affine map a channel stands before each branch, a learned scale
after it. Bound to the image size. Official repository: facebookresearch/deit; compared here with timm's.
"""

import dataclasses
import functools
import math
from typing import ClassVar

from vision_jax.layers.affine import Affine
from vision_jax.layers.block import Block
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.models.base import ModelConfig, PatchModel, patch_grid
from vision_jax.parameters import Normal, xavier_uniform
from vision_jax.registry import register


@dataclasses.dataclass(frozen=True)
class ResMLPConfig(ModelConfig):
    """A ResMLP."""

    patch_size: int | tuple = 16
    embed_dim: int = 384
    depth: int = 12
    mlp_ratio: float = 4.0
    layer_scale_init: float = 1e-4
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        patch_grid(self.img_size, self.patch_size)


class TokenLinear(Linear):
    """A linear map across the tokens, the same for every channel, [B, N, C] -> [B, N, C] (equation 2)."""

    def __call__(self, x, train=None):
        return super().__call__(x.swapaxes(1, 2)).swapaxes(1, 2)


class ResMLP(PatchModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {
        "timm": (
            (r"^patch_embed\.", "stem."),
            (r"\.attn\.", ".linear_tokens."),
            (r"\.mlp\.", ".mlp_channels."),
            (r"\.ls(\d)\.gamma$", r".ls\1"),
        )
    }

    def __init__(self, config):
        c, norm = config, functools.partial(Affine, dtype=config.dtype)
        tokens = math.prod(patch_grid(c.img_size, c.patch_size))
        linear = functools.partial(Linear, init=xavier_uniform, bias_init=Normal(1e-6))

        def block(index):
            attn = TokenLinear(tokens, tokens, init=xavier_uniform, dtype=c.dtype)
            hidden = int(c.embed_dim * c.mlp_ratio)
            mlp = Mlp(c.embed_dim, hidden, drop=c.proj_drop_rate, linear=linear, dtype=c.dtype)
            return Block(
                c.embed_dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, dtype=c.dtype
            )  # fmt: skip

        super().__init__(config, block, norm)


def _resmlp(name, depth, init, params, gmacs, tags, **fields):
    register(
        name, ResMLP, ResMLPConfig(depth=depth, layer_scale_init=init, **fields), params=params, gmacs=gmacs,
        paper="2105.03404", licence="apache-2.0", tags=tags,
    )  # fmt: skip


_IN1K = ("fb_in1k", "fb_distilled_in1k")
_resmlp("resmlp_12_224", 12, 1e-4, 15_350_872, 3.01, (*_IN1K, "fb_dino"))
_resmlp("resmlp_24_224", 24, 1e-5, 30_020_680, 5.96, (*_IN1K, "fb_dino"))
_resmlp("resmlp_36_224", 36, 1e-6, 44_690_488, 8.91, _IN1K)
_resmlp(
    "resmlp_big_24_224", 24, 1e-6, 129_138_280, 100.23, (*_IN1K, "fb_in22k_ft_in1k"), patch_size=8, embed_dim=768
)  # fmt: skip
