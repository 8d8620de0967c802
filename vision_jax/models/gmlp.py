"""gMLP: Pay Attention to MLPs (Liu et al., 2021, arXiv:2105.08050).

Patches become tokens; a block is one MLP, in whose middle half of the hidden channels, mixed by a linear map across the
tokens, multiplies the other half. Bound to the image size. The authors released no code; compared here with timm's,
which as the paper's figure 1 applies the activation before the halves part.
"""

import dataclasses
import functools
import math
from typing import ClassVar

from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.glu import GLU
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import ModelConfig, PatchModel, patch_grid
from vision_jax.parameters import Normal, ones, xavier_uniform
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register

_NEAR_ZERO = Normal(1e-6)


@dataclasses.dataclass(frozen=True)
class GMLPConfig(ModelConfig):
    """A gMLP; `mlp_ratio`: hidden features of both halves together, as a multiple of `embed_dim`."""

    patch_size: int | tuple = 16
    embed_dim: int = 128
    depth: int = 30
    mlp_ratio: float = 6.0
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        patch_grid(self.img_size, self.patch_size)
        hidden = int(self.embed_dim * self.mlp_ratio)
        check(
            hidden % 2 == 0, f"mlp_ratio={self.mlp_ratio} of embed_dim={self.embed_dim} gives {hidden}, an odd number"
        )


class SpatialGate(nnx.Module):
    """u * (W norm(v) + b), W across the tokens: two of [B, N, C] -> [B, N, C] (section 2.1)."""

    def __init__(self, dim, tokens, *, dtype):
        self.norm = LayerNorm(dim, epsilon=1e-5, dtype=dtype)
        self.proj = Linear(tokens, tokens, init=_NEAR_ZERO, bias_init=ones, dtype=dtype)

    def __call__(self, u, v):
        return u * self.proj(self.norm(v).swapaxes(1, 2)).swapaxes(1, 2)


class SpatiallyGatedMlp(nnx.Module):
    """An MLP with a spatial gate in its middle, [B, N, C] -> [B, N, C] (section 2)."""

    def __init__(self, dim, half, tokens, *, drop, dtype):
        init = dict(init=xavier_uniform, bias_init=_NEAR_ZERO, dtype=dtype)
        self.drop = drop
        self.fc1, self.fc2 = GLU(dim, half, **init), Linear(half, dim, **init)
        self.gate = SpatialGate(half, tokens, dtype=dtype)

    def __call__(self, x, train=None):
        u, v = (dropout(gelu(y), self.drop, train) for y in self.fc1(x))
        return dropout(self.fc2(self.gate(u, v)), self.drop, train)


class GatedBlock(nnx.Module):
    """x + drop_path(mlp(norm(x))), [B, N, C] -> [B, N, C]."""

    def __init__(self, dim, *, norm, mlp):
        self.norm, self.mlp = norm(dim), mlp

    def __call__(self, x, train=None):
        x = x + drop_path(tap(self, "mlp", self.mlp(self.norm(x), train)), train)
        return tap(self, "output", constrain_batch(x))


class GMLP(PatchModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {"timm": ((r"^patch_embed\.", "stem."), (r"\.mlp\.", ".mlp_channels."))}

    def __init__(self, config):
        c, norm = config, functools.partial(LayerNorm, epsilon=1e-6, dtype=config.dtype)
        tokens, half = math.prod(patch_grid(c.img_size, c.patch_size)), int(c.embed_dim * c.mlp_ratio) // 2

        def block(index):
            mlp = SpatiallyGatedMlp(c.embed_dim, half, tokens, drop=c.proj_drop_rate, dtype=c.dtype)
            return GatedBlock(c.embed_dim, norm=norm, mlp=mlp)

        super().__init__(config, block, norm)


def _gmlp(name, embed_dim, params, gmacs, tags=("",)):
    register(
        name, GMLP, GMLPConfig(embed_dim=embed_dim), params=params, gmacs=gmacs, paper="2105.08050",
        licence="apache-2.0", tags=tags, mean=INCEPTION_MEAN, std=INCEPTION_STD,
    )  # fmt: skip


_gmlp("gmlp_ti16_224", 128, 5_867_328, 1.34)
_gmlp("gmlp_s16_224", 256, 19_422_656, 4.42, ("ra3_in1k",))
_gmlp("gmlp_b16_224", 512, 73_075_392, 15.78)
