"""Neighborhood Attention Transformer (Hassani et al., 2022, arXiv:2204.07143) and Dilated NAT (arXiv:2209.15001).

Every pixel attends to its nearest neighbours, a window of its own that slides with it, with a bias for each offset.
DiNAT (Hassani & Shi, 2022) spreads the neighbours in every second block: local and sparse global context in turn.
The operator is `kernels.neighborhood_attention`, padding and bias are in `layers.neighborhood`.

NAT and DiNAT embed and downsample by overlapping 3x3 convolutions; DiNAT-S has Swin's layout; the isotropic models have
ViT's, one map of 16 x 16 patches.

Official repository: SHI-Labs/Neighborhood-Attention-Transformer, which is what this is compared with. Its operator came
from a NATTEN that had the bias; today's has none. The papers do not say that a map smaller than the dilated window is
padded: the NATTEN of the time did.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv
from vision_jax.layers.downsample import Downsample
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.neighborhood import NeighborhoodAttention
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed, PatchMerging
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import torch_default
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class NATConfig(ModelConfig):
    """A NAT or DiNAT; `embed_dim` is the papers' C, doubled in each stage.

    `dilations`: of every second block of each stage; the others have 1. `patch_size`: of DiNAT-S and of the isotropic
    models.
    """

    embed_dim: int = 64
    depths: tuple = (3, 4, 6, 5)
    num_heads: tuple = (2, 4, 8, 16)
    kernel_size: int = 7
    dilations: tuple = (1, 1, 1, 1)
    mlp_ratio: float = 3.0
    layer_scale_init: float | None = None
    patch_size: int = 4
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    @property
    def embed_dims(self):
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    def __post_init__(self):
        check_stages(self, "num_heads", "dilations")
        check(self.kernel_size % 2 == 1, f"kernel_size={self.kernel_size} is even: {self.kernel_size + 1} is not")


class ConvTokenizer(nnx.Module):
    """Two 3x3 convolutions and a norm, [B, H, W, C] -> [B, H/4, W/4, dim] (arXiv:2204.07143, section 3.3)."""

    def __init__(self, channels, dim, *, norm, dtype):
        conv = functools.partial(
            Conv, kernel_size=3, stride=2, init=torch_default, bias_init=torch_default, dtype=dtype
        )
        self.proj = nnx.List([conv(channels, dim // 2), conv(dim // 2, dim)])
        self.norm = norm(dim)

    def __call__(self, x):
        return self.norm(self.proj[1](self.proj[0](x)))


class PaddedPatchEmbed(PatchEmbed):
    """Patches of an image that they need not tile: it gets zeros below and to the right."""

    def __init__(self, channels, dim, patch_size, *, norm, dtype):
        super().__init__(channels, dim, patch_size, norm=norm, dtype=dtype)
        self.patch_size = patch_size

    def __call__(self, x):
        pads = ((0, -n % self.patch_size) for n in x.shape[1:3])
        return super().__call__(jnp.pad(x, ((0, 0), *pads, (0, 0))))


_SHARED = (
    (r"^stem\.", "patch_embed."),
    (r"\.ls(\d)\.gamma$", r".gamma\1"),
    (r"^norm_pre\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def _official(stages):
    """The authors' names: their stages hold the way down to the next."""
    down = (r"^stages\.(\d+)\.downsample\.", lambda match: f"{stages}.{int(match[1]) - 1}.downsample.")
    return (*_SHARED, down, (r"^stages\.", f"{stages}."), (r"\.downsample\.conv\.", ".downsample.reduction."))


class NAT(StagedModel):
    """Images [B, H, W, C] of any size -> logits [B, num_classes]: NAT and DiNAT."""

    classifier = ("head.fc",)
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$",)
    torch_names: ClassVar = {"official": _official("levels")}

    def __init__(self, config):
        c = self.config = config
        self.stem = self._embed()
        stages, rates = [], linear_rates(c.drop_path_rate, c.depths)
        for i, dim in enumerate(c.embed_dims):
            block = functools.partial(self._block, i, dim)
            period = 1 if c.dilations[i] == 1 else 2  # plain and dilated windows alternate
            blocks = Stack(block, rates[i], period=period, scan=c.scan_blocks, remat=c.remat)
            stages.append(Stage(self._downsample(dim // 2) if i else None, blocks))
        self.stages = nnx.List(stages)
        self.norm_pre = self._norm(c.embed_dims[-1])
        self.head = PooledHead(c.embed_dims[-1], c.num_classes, drop=c.drop_rate, dtype=c.dtype)
        self.feature_info = tuple(
            FeatureInfo(f"stages.{i}", dim, self._reduction() * 2**i) for i, dim in enumerate(c.embed_dims)
        )

    def _embed(self):
        c = self.config
        return ConvTokenizer(c.in_chans, c.embed_dim, norm=self._norm, dtype=c.dtype)

    def _reduction(self):
        return 4

    def _downsample(self, dim):
        return Downsample(
            dim, 2 * dim, 3, stride=2, padding=1, norm=self._norm, norm_first=False, bias=False, init=torch_default,
            dtype=self.config.dtype,
        )  # fmt: skip

    def _block(self, stage, dim, index):
        c = self.config
        attn = NeighborhoodAttention(
            dim, c.num_heads[stage], c.kernel_size, c.dilations[stage] if index % 2 else 1,
            proj_drop=c.proj_drop_rate, dtype=c.dtype,
        )  # fmt: skip
        mlp = Mlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, dtype=c.dtype)
        return Block(dim, attn=attn, mlp=mlp, norm=self._norm, layer_scale=c.layer_scale_init, dtype=c.dtype)

    def _norm(self, dim):
        return LayerNorm(dim, epsilon=1e-5, dtype=self.config.dtype)


class DiNATS(NAT):
    """DiNAT-S: Swin's layout, patches that merge."""

    torch_names: ClassVar = {"official": _official("layers")}

    def _embed(self):
        c = self.config
        return PaddedPatchEmbed(c.in_chans, c.embed_dim, c.patch_size, norm=self._norm, dtype=c.dtype)

    def _reduction(self):
        return self.config.patch_size

    def _downsample(self, dim):
        return PatchMerging(dim, 2 * dim, norm=self._norm, dtype=self.config.dtype)


class IsotropicNAT(DiNATS):
    """One stage, as in ViT; no class token, no positions but the attention's."""

    torch_names: ClassVar = {"official": (*_SHARED, (r"^stages\.0\.blocks\.", "layers."))}


_URL = "https://shi-labs.com/projects"
_SIZES = {  # embed_dim, depths, num_heads, mlp_ratio, drop_path_rate
    "mini": (64, (3, 4, 6, 5), (2, 4, 8, 16), 3.0, 0.2),
    "tiny": (64, (3, 4, 18, 5), (2, 4, 8, 16), 3.0, 0.2),
    "small": (96, (3, 4, 18, 5), (3, 6, 12, 24), 2.0, 0.3),
    "base": (128, (3, 4, 18, 5), (4, 8, 16, 32), 2.0, 0.5),
    "large": (192, (3, 4, 18, 5), (6, 12, 24, 48), 2.0, 0.35),
    "s_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 4.0, 0.2),
    "s_small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 4.0, 0.3),
    "s_base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 4.0, 0.5),
    "s_large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 4.0, 0.35),
    "isotropic_small": (384, (12,), (12,), 4.0, 0.1),
    "isotropic_base": (768, (12,), (24,), 4.0, 0.4),
}
_IN22K = dict(num_classes=21841)


def _nat(
    name, size, params, gmacs, tags, dilations=(8, 4, 2, 1), model=NAT, img_size=224, paper="2209.15001", **fields
):  # fmt: skip
    """Registers a variant. `tags`: {tag: the file below _URL, or (it, fields of Pretrained)}."""
    embed_dim, depths, num_heads, mlp_ratio, drop_path_rate = _SIZES[size]
    files = {tag: told if isinstance(told, tuple) else (told, {}) for tag, told in tags.items()}
    register(
        name, model,
        NATConfig(
            img_size=img_size, embed_dim=embed_dim, depths=depths, num_heads=num_heads, mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate, dilations=dilations, **fields,
        ),
        params=params, gmacs=gmacs, paper=paper, reference="SHI-Labs/Neighborhood-Attention-Transformer", licence="mit",
        hub="", crop_pct=0.875 if img_size == 224 else 1.0,
        tags={tag: dict(url=f"{_URL}/{file}.pth", **told) for tag, (file, told) in files.items()},
    )  # fmt: skip


def _nat_in1k(size, params, gmacs, **fields):
    file = f"nat/checkpoints/CLS/nat_{size}"
    _nat(f"nat_{size}", size, params, gmacs, {"in1k": file}, (1, 1, 1, 1), paper="2204.07143", **fields)


def _dinat_in1k(size, params, gmacs, **fields):
    file = f"dinat/checkpoints/imagenet1k/dinat_{size}_in1k_224"
    _nat(f"dinat_{size}", size, params, gmacs, {"in1k": file}, **fields)


def _isotropic(name, size, params, gmacs, dilation):
    file = f"dinat/checkpoints/isotropic/{name}_in1k_224"
    _nat(name, size, params, gmacs, {"in1k": file}, (dilation,), IsotropicNAT, patch_size=16)


# fmt: off
_nat_in1k("mini", 19_984_174, 2.7)
_nat_in1k("tiny", 27_901_582, 4.3)
_nat_in1k("small", 50_743_297, 7.8, layer_scale_init=1e-5)
_nat_in1k("base", 89_769_652, 13.7, layer_scale_init=1e-5)
_dinat_in1k("mini", 19_984_174, 2.7)
_dinat_in1k("tiny", 27_901_582, 4.3)
_dinat_in1k("small", 50_719_681, 7.8)
_dinat_in1k("base", 89_769_652, 13.7, layer_scale_init=1e-5)
_nat("dinat_large", "large", 200_943_514, 30.6, {
    "in22k_ft_in1k": "dinat/checkpoints/imagenet1k/dinat_large_in22k_in1k_224",
    "in22k": ("dinat/checkpoints/imagenet22k/dinat_large_in22k_224", _IN22K),
})
_nat("dinat_large_384", "large", 200_943_514, 89.7,
     {"in22k_ft_in1k": "dinat/checkpoints/imagenet1k/dinat_large_in22k_in1k_384"}, (13, 6, 3, 1), img_size=384)
_nat("dinat_large_384_11x11", "large", 201_144_250, 92.4, {
    "in22k_ft_in1k": "dinat/checkpoints/imagenet1k/dinat_large_in22k_in1k_384_11x11",
    # in22k of dinat_large, its biases interpolated
    "in22k": ("dinat/checkpoints/imagenet22k/dinat_large_in22k_224_11x11interp",
              dict(_IN22K, img_size=224, crop_pct=0.875)),
}, img_size=384, kernel_size=11)
_dinat_in1k("s_tiny", 28_288_354, 4.5, model=DiNATS)
_dinat_in1k("s_small", 49_606_258, 8.7, model=DiNATS)
_dinat_in1k("s_base", 87_768_224, 15.4, model=DiNATS)
_nat("dinat_s_large", "s_large", 196_532_476, 34.5, {
    "in22k_ft_in1k": "dinat/checkpoints/imagenet1k/dinat_s_large_in1k_224",
    "in22k": ("dinat/checkpoints/imagenet22k/dinat_s_large_in22k_224", _IN22K),
}, model=DiNATS)
_nat("dinat_s_large_384", "s_large", 196_532_476, 101.5,
     {"in22k_ft_in1k": "dinat/checkpoints/imagenet1k/dinat_s_large_in1k_384"}, (13, 6, 3, 1), DiNATS, 384)
_isotropic("nat_isotropic_small", "isotropic_small", 21_999_736, 4.3, 1)
_isotropic("dinat_isotropic_small", "isotropic_small", 21_999_736, 4.3, 2)
_isotropic("nat_isotropic_base", "isotropic_base", 86_465_800, 16.9, 1)
_isotropic("dinat_isotropic_base", "isotropic_base", 86_465_800, 16.9, 2)
# fmt: on
