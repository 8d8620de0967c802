"""GFNet: Global Filter Networks for Image Classification (Rao et al., 2021, arXiv:2107.00645).

Tokens are mixed in the frequency domain: a Fourier transform, a learned factor for each frequency and channel, and the
transform back, which is a convolution with filters as large as the map at log-linear cost. Filter and MLP share one
shortcut. One resolution as in ViT, or four (GFNet-H). Official repository: raoyongming/GFNet, which this follows; its
weights are published as pickles. They were evaluated on a central crop of 224/256; the default_cfg that the file has
beside the models says 0.9, but nothing reads it.
"""

import dataclasses
from typing import ClassVar

from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.scale import LayerScale
from vision_jax.layers.spectral import GlobalFilter
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages, patch_grid
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import register


@dataclasses.dataclass(frozen=True)
class GFNetConfig(ModelConfig):
    """A GFNet; `depths` and `embed_dims` have a number a stage, each stage halves the map of the one before."""

    patch_size: int = 16
    depths: tuple = (12,)
    embed_dims: tuple = (384,)
    mlp_ratio: float = 4.0
    layer_scale_init: float | None = None
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims")
        patch_grid(self.img_size, self.patch_size * 2 ** (len(self.depths) - 1))


class GFNetBlock(nnx.Module):
    """x + drop_path(scale(MLP(norm(filter(norm(x)))))), [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, dim, size):
        self.norm1, self.filter = LayerNorm(dim, epsilon=1e-6, dtype=c.dtype), GlobalFilter(dim, size, dtype=c.dtype)
        self.norm2 = LayerNorm(dim, epsilon=1e-6, dtype=c.dtype)
        self.mlp = Mlp(dim, int(dim * c.mlp_ratio), dtype=c.dtype)
        self.ls = None if c.layer_scale_init is None else LayerScale(dim, c.layer_scale_init, dtype=c.dtype)

    def __call__(self, x, train=None):
        y = self.mlp(self.norm2(tap(self, "filter", self.filter(self.norm1(x)))), train)
        return tap(self, "output", constrain_batch(x + drop_path(self.ls(y) if self.ls else y, train)))


class Stem(nnx.Module):
    """Patches with learned positions, images [B, H, W, C] -> [B, H/p, W/p, dim]."""

    def __init__(self, c, grid):
        dim, self.grid = c.embed_dims[0], grid
        self.patches = PatchEmbed(c.in_chans, dim, c.patch_size, dtype=c.dtype)
        self.pos_embed = param((1, grid[0] * grid[1], dim), trunc_normal)

    def __call__(self, images):
        x = self.patches(images)
        return x + self.pos_embed[...].astype(x.dtype).reshape(1, *self.grid, -1)

    def resample(self, leaf, array):
        """Positions made for another image size, at this one's; filters have none."""
        return resample_positions(array, self.grid) if leaf == "pos_embed" else array


_SHARED = (
    (r"^stem\.pos_embed$", "pos_embed"),
    (r"^norm_pre\.", "norm."),
    (r"^head\.fc\.", "head."),
    (r"\.ls\.gamma$", ".gamma"),
)
_SINGLE = (*_SHARED, (r"^stem\.patches\.", "patch_embed."), (r"^stages\.0\.", ""))
_PYRAMID = (
    *_SHARED,
    (r"^stem\.patches\.", "patch_embed.0."),
    (r"^stages\.(\d)\.downsample\.conv\.", r"patch_embed.\1.proj."),
    (r"^stages\.(\d)\.blocks\.", r"blocks.\1."),
)


class GFNet(StagedModel):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {"official": _PYRAMID}

    def __init__(self, config):
        c = self.config = config
        size, stages, din = patch_grid(c.img_size, c.patch_size), [], c.embed_dims[0]
        self.stem = Stem(c, size)
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):
            kw = dict(stride=2, padding=0, norm=None, init=torch_default, bias_init=torch_default, dtype=c.dtype)
            down = Downsample(din, dim, 2, **kw) if i else None
            size, din = tuple(n // 2 for n in size) if i else size, dim

            def block(index, dim=dim, size=size):
                return GFNetBlock(c, dim, size)

            stages.append(Stage(down, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
        self.stages = nnx.List(stages)
        self.norm_pre = LayerNorm(din, epsilon=1e-6, dtype=c.dtype)
        self.head = PooledHead(din, c.num_classes, drop=c.drop_rate, dtype=c.dtype)
        self.feature_info = tuple(
            FeatureInfo(f"stages.{i}", dim, c.patch_size * 2**i) for i, dim in enumerate(c.embed_dims)
        )

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        self.check_size(images)
        return self.stem(images)


class GFNetSingle(GFNet):
    """One of a single stage, whose names in weight files are simpler."""

    torch_names: ClassVar = {"official": _SINGLE}


def _gfnet(name, params, gmacs, depths, embed_dims, **fields):
    register(
        f"gfnet_{name}", GFNet if len(depths) > 1 else GFNetSingle,
        GFNetConfig(depths=depths, embed_dims=embed_dims, **fields), params=params, gmacs=gmacs, paper="2107.00645",
        reference="raoyongming/GFNet", licence="mit",
    )  # fmt: skip


_H = dict(patch_size=4)
_gfnet("ti", 7_511_784, 1.3, (12,), (256,))
_gfnet("xs", 15_985_768, 2.8, (12,), (384,))
_gfnet("s", 24_869_608, 4.5, (19,), (384,))
_gfnet("b", 43_120_616, 7.9, (19,), (512,))
_gfnet("h_ti", 15_085_096, 2.0, (3, 3, 10, 3), (64, 128, 256, 512), layer_scale_init=1e-3, **_H)
_gfnet("h_s", 32_162_632, 4.5, (3, 3, 10, 3), (96, 192, 384, 768), layer_scale_init=1e-5, **_H)
_gfnet("h_b", 53_744_200, 8.4, (3, 3, 27, 3), (96, 192, 384, 768), layer_scale_init=1e-6, **_H)
