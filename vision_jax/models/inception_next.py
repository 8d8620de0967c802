"""InceptionNeXt: When Inception Meets ConvNeXt (Yu et al., 2023, arXiv:2303.16900).

A ConvNeXt whose large depthwise convolution is taken apart, because reading memory, not computing, makes it slow: of
the channels an eighth passes a 3x3 square, an eighth a 1x11 band, an eighth an 11x1 band, and the others stay as they
are. Batch norms take the place of layer norms, and the head has a hidden layer. Official repository:
sail-sg/inceptionnext; compared here with timm's, which is derived from it.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.conv import Conv
from vision_jax.layers.downsample import DOWN_IN_SEQUENCE, STEM_IN_SEQUENCE, Downsample
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import BatchNorm, LayerNorm
from vision_jax.layers.scale import LayerScale
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class InceptionNeXtConfig(ModelConfig):
    """An InceptionNeXt.

    `band_kernel_size` and `square_kernel_size` are odd; `branch_ratio` is the share of the channels that each of the
    three convolutions takes, 1/3 at most.
    """

    depths: tuple = (3, 3, 9, 3)
    embed_dims: tuple = (96, 192, 384, 768)
    mlp_ratios: tuple = (4, 4, 4, 3)
    square_kernel_size: int = 3
    band_kernel_size: int = 11
    branch_ratio: float = 0.125
    layer_scale_init: float = 1e-6
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "mlp_ratios")
        for field in ("square_kernel_size", "band_kernel_size"):
            check(getattr(self, field) % 2 == 1, f"{field}={getattr(self, field)} must be odd")
        check(
            0 < self.branch_ratio <= 1 / 3 and int(min(self.embed_dims) * self.branch_ratio) > 0,
            f"branch_ratio={self.branch_ratio}: above 0 and at most 1/3, and a channel at least of {self.embed_dims}",
        )


class InceptionConv(nnx.Module):
    """Identity, square and two bands of depthwise convolutions side by side, [B, H, W, C] -> [B, H, W, C].

    Section 3.2 of the paper.

    Args:
      dim: channels.
      square, band: kernel sizes.
      branch_ratio: share of the channels of each convolution; the first channels are left as they are.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, *, square, band, branch_ratio, dtype):
        width = int(dim * branch_ratio)
        self.splits = (dim - 3 * width, dim - 2 * width, dim - width)
        self.dwconv_hw, self.dwconv_w, self.dwconv_h = (
            Conv(width, width, kernel_size, groups=width, dtype=dtype) for kernel_size in (square, (1, band), (band, 1))
        )

    def __call__(self, x):
        rest, square, wide, high = jnp.split(x, self.splits, axis=-1)
        branches = (rest.astype(self.dwconv_hw.dtype), self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high))
        return jnp.concatenate(branches, axis=-1)


class MetaNeXtBlock(nnx.Module):
    """x + drop_path(scale(MLP(norm(mixer(x))))), [B, H, W, C] -> [B, H, W, C] (section 3.1)."""

    def __init__(self, c, dim, mlp_ratio):
        self.token_mixer = InceptionConv(
            dim, square=c.square_kernel_size, band=c.band_kernel_size, branch_ratio=c.branch_ratio, dtype=c.dtype
        )
        self.norm = BatchNorm(dim, dtype=c.dtype)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), linear=PointwiseConv, dtype=c.dtype)
        self.ls = LayerScale(dim, c.layer_scale_init, dtype=c.dtype)

    def __call__(self, x, train=None):
        y = self.mlp(self.norm(tap(self, "token_mixer", self.token_mixer(x)), train), train)
        return tap(self, "output", constrain_batch(x + drop_path(self.ls(y), train)))


class InceptionNeXt(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {
        "timm": (
            *STEM_IN_SEQUENCE,
            *DOWN_IN_SEQUENCE,
            (r"\.ls\.gamma$", ".gamma"),
            (r"^head\.fc\.", "head.fc2."),
            (r"^head\.pre_logits\.fc\.", "head.fc1."),
            (r"^head\.pre_logits\.norm\.", "head.norm."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        kw, din = dict(padding=0, norm=lambda dim: BatchNorm(dim, dtype=c.dtype), dtype=c.dtype), c.embed_dims[0]
        self.stem = Downsample(c.in_chans, din, 4, stride=4, norm_first=False, **kw)
        stages, info, rates = [], [], linear_rates(c.drop_path_rate, c.depths)
        for i, (dim, ratio) in enumerate(zip(c.embed_dims, c.mlp_ratios, strict=True)):
            down = Downsample(din, dim, 2, stride=2, **kw) if i else None

            def block(index, dim=dim, ratio=ratio):
                return MetaNeXtBlock(c, dim, ratio)

            stages.append(Stage(down, Stack(block, rates[i], scan=c.scan_blocks, remat=c.remat)))
            info.append(FeatureInfo(f"stages.{i}", dim, 4 * 2**i))
            din = dim
        self.stages, self.feature_info = nnx.List(stages), tuple(info)
        self.head = PooledHead(
            din, c.num_classes, hidden=3 * din, hidden_norm=lambda dim: LayerNorm(dim, epsilon=1e-6, dtype=c.dtype),
            drop=c.drop_rate, dtype=c.dtype,
        )  # fmt: skip

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        return self.stem(images, train)


def _inception_next(name, depths, dim, params, gmacs, tags=("sail_in1k",), crop_pct=0.875, **fields):
    register(
        f"inception_next_{name}", InceptionNeXt,
        InceptionNeXtConfig(depths=depths, embed_dims=(dim, 2 * dim, 4 * dim, 8 * dim), **fields),
        params=params, gmacs=gmacs, paper="2303.16900", licence="apache-2.0", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_BASE = {"sail_in1k": {}, "sail_in1k_384": dict(img_size=384, crop_pct=1.0)}
_inception_next("atto", (2, 2, 6, 2), 40, 4_156_520, 0.5, band_kernel_size=9, branch_ratio=0.25)
_inception_next("tiny", (3, 3, 9, 3), 96, 28_055_680, 4.2)
_inception_next("small", (3, 3, 27, 3), 96, 49_374_016, 8.4)
_inception_next("base", (3, 3, 27, 3), 128, 86_672_136, 14.9, _BASE, crop_pct=0.95)
