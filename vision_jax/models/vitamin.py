"""ViTamin: Designing Scalable Vision Models in the Vision-Language Era (Chen et al., 2024, arXiv:2404.02132).

A ViT on patches that two stages of inverted bottlenecks have made: convolutions while the map is large, attention at
stride 16, where three quarters of the blocks and a gated feed-forward network make the most of image-text pairs.
Official repository: Beckschen/ViTamin; compared here with timm's, which its authors wrote.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.glu import GLU, GatedMlp
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.pooling import avg_pool
from vision_jax.mesh import constrain_batch
from vision_jax.models.vit import VisionTransformer, ViTConfig, settle
from vision_jax.parameters import kaiming_normal, torch_default, trunc_normal, zeros
from vision_jax.registry import CLIP_MEAN, CLIP_STD, check, register


@dataclasses.dataclass(frozen=True)
class ViTaminConfig(ViTConfig):
    """A ViTamin: a ViT with `stem_depths` inverted bottlenecks of `stem_dims` channels for its patches of 16 pixels."""

    class_token: bool = False
    global_pool: str = "avg"
    mlp_ratio: float = 2.0
    stem_dims: tuple = (64, 128)
    stem_depths: tuple = (2, 4)

    def __post_init__(self):
        super().__post_init__()
        dims, depths = self.stem_dims, self.stem_depths
        check(len(dims) == len(depths) == 2, f"stem_dims={dims} and stem_depths={depths}: two stages")
        settle(self, patch_size=16, mlp="mlp", act="gelu", pre_norm=False, mlp_norm=False)


class Bottleneck(nnx.Module):
    """x + project(gelu(depthwise(gelu(expand(norm(x)))))), [B, H, W, din] -> [B, H/stride, W/stride, dout].

    MBConv-LN (section 3.3): one layer norm in place of the batch norms, no squeeze-and-excitation.
    """

    def __init__(self, din, dout, stride, *, norm, dtype):
        kw, hidden = dict(init=kaiming_normal, dtype=dtype), 4 * dout
        self.shortcut = Shrink(din, dout, **kw) if stride == 2 else None
        self.pre_norm = norm(din)
        self.conv1_1x1 = PointwiseConv(din, hidden, **kw)
        self.conv2_kxk = Conv(hidden, hidden, 3, stride=stride, groups=hidden, **kw)
        self.conv3_1x1 = PointwiseConv(hidden, dout, **kw)

    def __call__(self, x):
        y = gelu(self.conv1_1x1(self.pre_norm(x)))
        y = self.conv3_1x1(gelu(self.conv2_kxk(y)))
        return constrain_batch((self.shortcut(x) if self.shortcut else x) + y)


class Shrink(nnx.Module):
    """Averages three by three, and projects where the channels change: [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, init, dtype):
        self.expand = PointwiseConv(din, dout, init=init, dtype=dtype) if din != dout else None

    def __call__(self, x):
        x = avg_pool(x, 3, stride=2, padding=1)
        return self.expand(x) if self.expand else x


class Stem(nnx.Module):
    """Images [B, H, W, C] -> patches [B, H/16, W/16, dim]."""

    def __init__(self, c):
        norm, kw = functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype), dict(init=kaiming_normal, dtype=c.dtype)
        width = c.stem_dims[0]
        self.conv1, self.norm1 = Conv(c.in_chans, width, 3, stride=2, **kw), norm(width)
        self.conv2 = Conv(width, width, 3, **kw)
        dims = zip((width, *c.stem_dims), c.stem_dims, c.stem_depths, strict=False)
        self.stages = nnx.List(
            nnx.List(Bottleneck(dim if i else din, dim, 1 if i else 2, norm=norm, dtype=c.dtype) for i in range(depth))
            for din, dim, depth in dims
        )
        self.pool = Downsample(
            c.stem_dims[1], c.embed_dim, 3, stride=2, padding=1, norm=norm, init=torch_default, bias_init=torch_default,
            dtype=c.dtype,
        )  # fmt: skip

    def __call__(self, x):
        x = self.conv2(gelu(self.norm1(self.conv1(x))))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.pool(x)


class NormedGeGLU(GatedMlp):
    """The gated network with a norm of its own before it: tokens are normalised twice in a row, as released."""

    def __init__(self, dim, hidden, *, norm, drop, dtype):
        glu = functools.partial(GLU, init=trunc_normal, bias_init=zeros)
        super().__init__(dim, hidden, act=gelu, drop=drop, glu=glu, dtype=dtype)
        self.norm_in = norm(dim)

    def __call__(self, x, train=None):
        return super().__call__(self.norm_in(x), train)


class ViTamin(VisionTransformer):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    torch_names: ClassVar = {
        "timm": (
            (r"^patch_embed\.(conv|norm)", r"patch_embed.backbone.stem.\1"),
            (r"^patch_embed\.(stages|pool)", r"patch_embed.backbone.\1"),
            (r"\.pool\.conv\.", ".pool.proj."),
            (r"\.mlp\.norm_in\.", ".mlp.norm."),
            (r"\.mlp\.fc1\.", (".mlp.w0.", ".mlp.w1.")),
            (r"\.mlp\.fc2\.", ".mlp.w2."),
        )
    }
    linen_names: ClassVar = {}

    def make_patch_embed(self):
        """Images [B, H, W, C] -> the map of patches [B, H/16, W/16, dim]."""
        return Stem(self.config)

    def make_mlp(self, index):
        """The channel mixer of a block."""
        c = self.config
        hidden = int(c.embed_dim * c.mlp_ratio)
        return NormedGeGLU(c.embed_dim, hidden, norm=self.make_norm, drop=c.proj_drop_rate, dtype=c.dtype)


_SIZES = {  # channels, blocks, heads; channels of the stem; name of the weights
    "small": (384, 14, 6, (64, 128), "S"),
    "base": (768, 14, 12, (128, 256), "B"),
    "large": (1024, 31, 16, (160, 320), "L"),
    "large2": (1024, 31, 16, (160, 320), "L2"),
    "xlarge": (1152, 32, 16, (192, 384), "XL"),
}


def _vitamin(size, img_size, params, gmacs, classes, *, tags=None):
    dim, depth, heads, stem_dims, letter = _SIZES[size]
    register(
        f"vitamin_{size}_{img_size}", ViTamin,
        ViTaminConfig(
            img_size=img_size, embed_dim=dim, depth=depth, num_heads=heads, stem_dims=stem_dims, num_classes=classes,
            position="none" if size == "xlarge" else "learned",
        ),
        params=params, gmacs=gmacs, paper="2404.02132", licence="mit", mean=CLIP_MEAN, std=CLIP_STD,
        crop_pct=0.9 if img_size == 224 else 1.0,
        tags=tags or {"datacomp1b_clip": dict(hub=f"jienengchen/ViTamin-{letter}-{img_size}px")},
    )  # fmt: skip


def _tags(letter, classes):
    """Of the two smaller models; `classes` without the text tower locked."""
    hub = f"jienengchen/ViTamin-{letter}"
    return {"datacomp1b_clip_ltt": dict(hub=f"{hub}-LTT"), "datacomp1b_clip": dict(hub=hub, num_classes=classes)}


_vitamin("small", 224, 22_173_376, 5.92, 768, tags=_tags("S", 384))
_vitamin("base", 224, 87_722_624, 22.68, 768, tags=_tags("B", 768))
_vitamin("large", 224, 333_318_816, 75.05, 768)
_vitamin("large", 256, 333_380_256, 99.00, 768)
_vitamin("large", 336, 333_569_696, 175.72, 768)
_vitamin("large", 384, 333_707_936, 234.44, 768)
_vitamin("large2", 224, 333_581_216, 75.05, 1024)
_vitamin("large2", 256, 333_642_656, 99.00, 1024)
_vitamin("large2", 336, 333_832_096, 175.72, 1024)
_vitamin("large2", 384, 333_970_336, 234.44, 1024)
_vitamin("xlarge", 256, 436_055_232, 130.13, 1152)
_vitamin("xlarge", 336, 436_055_232, 230.18, 1152)
_vitamin("xlarge", 384, 436_055_232, 306.38, 1152)
