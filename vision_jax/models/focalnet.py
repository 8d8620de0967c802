"""FocalNet: Focal Modulation Networks (Yang et al., 2022, arXiv:2203.11926).

No attention: what surrounds a pixel is gathered first, by depthwise convolutions of growing kernels, one on the other,
and the mean of the map; gates choose among the levels, and the sum multiplies the pixel's query. Linear in the pixels.
Official repository: microsoft/FocalNet; compared here with timm's. As released, the gates are not bounded.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class FocalNetConfig(ModelConfig):
    """A FocalNet; `embed_dim` doubles with each stage.

    Attributes:
      focal_levels: number of convolutions that gather context, the paper's L; focal_window: kernel size of the first,
        each next one is 2 larger.
      overlap: the strided convolutions' windows overlap.
      norm_last: branches end, not begin, with a norm; norm_modulated: another follows the modulation (the largest).
    """

    embed_dim: int = 96
    depths: tuple = (2, 2, 6, 2)
    focal_levels: int = 2
    focal_window: int = 3
    mlp_ratio: float = 4.0
    overlap: bool = False
    norm_last: bool = False
    norm_modulated: bool = False
    layer_scale_init: float | None = None
    drop_path_rate: float = 0.1
    scan_blocks: bool = False

    def __post_init__(self):
        check(self.focal_window % 2 == 1, f"focal_window={self.focal_window}: an odd number")


class FocalModulation(nnx.Module):
    """q(x) * h(sum of gate_l(x) context_l(x)), [B, H, W, C] -> [B, H, W, C].

    Args:
      dim: channels.
      levels, window: number of convolutions, and the first one's kernel size.
      norm: `(dim) -> module` before the last projection, or None.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, levels, window, *, norm=None, dtype=jnp.float32):
        self.splits = (dim, 2 * dim)
        self.f = PointwiseConv(dim, 2 * dim + levels + 1, dtype=dtype)
        self.focal_layers = nnx.List(
            [Conv(dim, dim, window + 2 * i, groups=dim, bias=False, dtype=dtype) for i in range(levels)]
        )
        self.h, self.norm = PointwiseConv(dim, dim, dtype=dtype), norm(dim) if norm else None
        self.proj = PointwiseConv(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        query, context, gates = jnp.split(self.f(x), self.splits, axis=-1)
        total = 0.0
        for level, conv in enumerate(self.focal_layers):
            context = gelu(conv(context))
            total = total + context * gates[..., level : level + 1]
        total = total + gelu(context.mean((1, 2), keepdims=True)) * gates[..., -1:]
        y = query * tap(self, "modulator", self.h(total))
        return self.proj(self.norm(y) if self.norm else y)


class FocalNet(StagedModel):
    """Images [B, H, W, C] of any size -> logits [B, num_classes]."""

    classifier = ("head.fc",)

    @property
    def torch_names(self):
        """timm's names: a norm says where it stands."""
        norms = ((r"\.(norm[12])\.", r".\1_post."),) if self.config.norm_last else ()
        timm = (
            *norms,
            (r"^stages\.", "layers."),
            (r"^(stem|layers\.\d\.downsample)\.conv\.", r"\1.proj."),
            (r"\.attn\.", ".modulation."),
            (r"\.focal_layers\.(\d)\.", r".focal_layers.\1.0."),
            (r"^norm_pre\.", "norm."),
        )
        return {"timm": timm}

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        dims, stages = tuple(c.embed_dim * 2**i for i in range(len(c.depths))), []
        stem, halve = (dict(kernel_size=7, padding=2), dict(kernel_size=3, padding=1)) if c.overlap else (
            dict(kernel_size=4, padding=0), dict(kernel_size=2, padding=0)
        )  # fmt: skip
        self.stem = Downsample(c.in_chans, dims[0], stride=4, norm=norm, norm_first=False, **stem, **kw)

        def block(dim, index):
            modulated = norm if c.norm_modulated else None
            attn = FocalModulation(dim, c.focal_levels, c.focal_window, norm=modulated, **kw)
            mlp = Mlp(dim, int(dim * c.mlp_ratio), linear=PointwiseConv, **kw)
            return Block(
                dim, attn=attn, mlp=mlp, norm=norm, norm_last=c.norm_last, layer_scale=c.layer_scale_init, **kw
            )  # fmt: skip

        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            options = dict(stride=2, norm=norm, norm_first=False, **halve, **kw)
            blocks = Stack(functools.partial(block, dims[i]), rates, scan=c.scan_blocks, remat=c.remat)
            stages.append(Stage(Downsample(dims[i - 1], dims[i], **options) if i else None, blocks))
        self.stages = nnx.List(stages)
        self.norm_pre = norm(dims[-1])
        self.head = PooledHead(dims[-1], c.num_classes, drop=c.drop_rate, **kw)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(dims))


def _focalnet(name, params, gmacs, tag="ms_in1k", crop_pct=0.9, **fields):
    register(
        f"focalnet_{name}", FocalNet, FocalNetConfig(**fields), params=params, gmacs=gmacs, paper="2203.11926",
        licence="mit", tags=(tag,), crop_pct=crop_pct,
    )  # fmt: skip


_DEEP, _BASE = dict(depths=(2, 2, 18, 2)), dict(depths=(2, 2, 18, 2), embed_dim=128)
_focalnet("tiny_srf", 28_427_116, 4.42)
_focalnet("small_srf", 49_891_216, 8.62, **_DEEP)
_focalnet("base_srf", 88_148_144, 15.28, **_BASE)
_focalnet("tiny_lrf", 28_647_928, 4.49, focal_levels=3)
_focalnet("small_lrf", 50_342_440, 8.74, focal_levels=3, **_DEEP)
_focalnet("base_lrf", 88_749_768, 15.43, focal_levels=3, **_BASE)

_IN22K = dict(_DEEP, tag="ms_in22k", num_classes=21_842, overlap=True, norm_last=True, layer_scale_init=1e-4)
_LARGE = dict(_IN22K, img_size=384, crop_pct=1.0)
_HUGE = dict(_IN22K, norm_modulated=True, embed_dim=352)
_focalnet("large_fl3", 239_134_898, 105.06, **_LARGE, embed_dim=192, focal_levels=3, focal_window=5)
_focalnet("large_fl4", 239_315_402, 105.20, **_LARGE, embed_dim=192, focal_levels=4)
_focalnet("xlarge_fl3", 408_787_378, 185.61, **_LARGE, embed_dim=256, focal_levels=3, focal_window=5)
_focalnet("xlarge_fl4", 409_028_042, 185.79, **_LARGE, embed_dim=256, focal_levels=4)
_focalnet("huge_fl3", 745_276_338, 118.26, **_HUGE, focal_levels=3)
_focalnet("huge_fl4", 686_460_664, 118.90, **dict(_HUGE, num_classes=0), focal_levels=4)
