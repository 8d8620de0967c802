"""MobileNet-EdgeTPU: networks searched for the TPUs of phones (Akin et al., 2022, arXiv:2204.14007).

The first inverted bottlenecks are fused into dense convolutions, which such units compute as fast, and in the second
version into grouped ones, of 64 or 128 channels, between the two in cost. No squeeze-and-excitation, relu throughout.
Official repository: tensorflow/models (official/projects/edgetpu/vision); compared here with timm's, with its symmetric
padding.
"""

from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register


def _stage(kinds, dim, *, kernel_size=3, stride=2, groups=(0, 0, 0), first_skip=True):
    """A row that expands eight times, then rows that expand four times: of "fused" blocks of these groups, or three."""
    first = Blocks(kinds[0], 1, kernel_size, stride, 8, dim, skip=first_skip)
    if kinds[1] == "mbconv":
        return (first, Blocks("mbconv", 3, kernel_size, 1, 4, dim))
    return (first, *(Blocks("fused", 1, kernel_size, 1, 4, dim, group_width=width) for width in groups))


_DENSE, _MIXED, _DEPTHWISE = ("fused", "fused"), ("fused", "mbconv"), ("mbconv", "mbconv")
_V1 = (
    (Blocks("conv", 1, 1, 1, 1, 16, skip=False),),
    _stage(_DENSE, 32),
    _stage(_DENSE, 48),
    _stage(_DEPTHWISE, 96),
    _stage(_DEPTHWISE, 96, stride=1, first_skip=False),
    _stage(_DEPTHWISE, 160, kernel_size=5),
    (Blocks("mbconv", 1, 3, 1, 8, 192),),
)


def _v2(dims, group_width):
    return (
        (Blocks("conv", 1, 1, 1, 1, dims[0], skip=False),),
        _stage(_DENSE, dims[1], groups=(group_width,)),
        _stage(_DENSE, dims[2], groups=(group_width, 0, group_width)),
        _stage(_MIXED, dims[3]),
        _stage(_DEPTHWISE, dims[4], stride=1),
        _stage(_DEPTHWISE, dims[5]),
        (Blocks("mbconv", 1, 3, 1, 8, dims[6]),),
    )


class MobileNetEdgeTPU(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _edgetpu(name, stages, params, gmacs, tag="", *, told=None, **fields):
    register(
        f"mobilenet_edgetpu_{name}", MobileNetEdgeTPU, InvertedResidualConfig(stages=stages, **fields), params=params,
        gmacs=gmacs, paper="2204.14007", licence="apache-2.0", tags=(tag,), crop_pct=0.9, **(told or {}),
    )  # fmt: skip


_edgetpu("100", _V1, 4_091_432, 0.99)
_edgetpu("v2_xs", _v2((16, 32, 48, 96, 144, 160, 192), 64), 4_459_880, 0.69)
_edgetpu("v2_s", _v2((24, 48, 64, 128, 160, 192, 256), 64), 5_986_456, 1.20, stem_dim=64, stem_kernel=5)
_edgetpu(
    "v2_m", _v2((32, 64, 80, 160, 192, 240, 320), 64), 8_462_888, 1.84, "ra4_e3600_r224_in1k", stem_dim=64,
    stem_kernel=5, head_dim=1344, told=dict(mean=INCEPTION_MEAN, std=INCEPTION_STD),
)  # fmt: skip
_edgetpu(
    "v2_l", _v2((32, 64, 96, 192, 240, 256, 384), 128), 10_921_640, 2.53, stem_dim=64, stem_kernel=7, head_dim=1408
)  # fmt: skip
