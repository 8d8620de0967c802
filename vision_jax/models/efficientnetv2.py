"""EfficientNetV2: Smaller Models and Faster Training (Tan & Le, 2021, arXiv:2104.00298).

A search for training speed too: inverted bottlenecks in the first stages are fused into dense convolutions, expansions
and kernels are smaller, and the last stages deeper. Official repository: google/automl (efficientnetv2); compared here
with timm's, whose `tf_` variants have its padding and epsilons for the official weights. The `rw` variants are timm's
own, from the paper's table before the code was released; `gc` weighs channels by global context blocks.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register

SE = 0.25


def _stages(conv, fused, mbconv):
    """Stages from (repeats, channels) of the first, the fused ones, and (repeats, channels, stride, expansion)."""
    return (
        (Blocks("conv", conv[0], 3, 1, 1, conv[1]),),
        *((Blocks("fused", repeats, 3, 2, 4, dim),) for repeats, dim in fused),
        *((Blocks("mbconv", repeats, 3, stride, expansion, dim, SE),) for repeats, dim, stride, expansion in mbconv),
    )


_BASE = _stages((1, 16), ((2, 32), (2, 48)), ((3, 96, 2, 4), (5, 112, 1, 6), (8, 192, 2, 6)))
_S = _stages((2, 24), ((4, 48), (4, 64)), ((6, 128, 2, 4), (9, 160, 1, 6), (15, 256, 2, 6)))
_RW = ((Blocks("fused", 2, 3, 1, 1, 24),), *_S[1:5], (_S[5][0]._replace(dim=272),))
_M = _stages((3, 24), ((5, 48), (5, 80)), ((7, 160, 2, 4), (14, 176, 1, 6), (18, 304, 2, 6), (5, 512, 1, 6)))
_L = _stages((4, 32), ((7, 64), (7, 96)), ((10, 192, 2, 4), (19, 224, 1, 6), (25, 384, 2, 6), (7, 640, 1, 6)))
_XL = _stages((4, 32), ((8, 64), (8, 96)), ((16, 192, 2, 4), (24, 256, 1, 6), (32, 512, 2, 6), (8, 640, 1, 6)))


class EfficientNetV2(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _v2(
    name, stages, img_size, params, gmacs, tags=("",), *, width=1.0, depth=1.0, stem=24, head=1280, limit=0.9,
    crop_pct=1.0, **fields,
):  # fmt: skip
    stages = scaled(stages, width, depth, limit=limit)
    stem, head = (round_channels(dim * width, limit=limit) for dim in (stem, head))
    register(
        name, EfficientNetV2,
        InvertedResidualConfig(stages=stages, img_size=img_size, stem_dim=stem, head_dim=head, act="silu", **fields),
        params=params, gmacs=gmacs, paper="2104.00298", licence="apache-2.0", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


# Multiply-adds are counted: the paper's are of larger images.
_v2("efficientnetv2_s", _S, 288, 21_458_488, 4.71)
_v2("efficientnetv2_m", _M, 320, 54_139_356, 10.93)
_v2("efficientnetv2_l", _L, 384, 118_515_272, 35.90, stem=32)
_v2("efficientnetv2_xl", _XL, 384, 208_119_808, 52.53, stem=32)
_v2("efficientnetv2_rw_t", _S, 224, 13_649_388, 1.91, ("ra2_in1k",), width=0.8, depth=0.9)
_v2(
    "gc_efficientnetv2_rw_t", _S, 224, 13_677_713, 1.92, ("agc_in1k",), width=0.8, depth=0.9, global_context=True
)  # fmt: skip
_v2("efficientnetv2_rw_s", _RW, 288, 23_941_296, 4.86, ("ra2_in1k",), head=1792)
_RW_M = dict(width=1.2, depth=(1.2,) * 4 + (1.6,) * 2, head=1792)
_v2("efficientnetv2_rw_m", _RW, 320, 53_236_442, 12.63, ("agc_in1k",), **_RW_M)

_TF = dict(same_padding=True, epsilon=1e-3)
_INCEPTION = dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)
_SQUASH = dict(_INCEPTION, crop_mode="squash")
_B3 = {
    "in21k_ft_in1k": dict(_SQUASH, crop_pct=0.9),
    "in1k": {},
    "in21k": dict(_INCEPTION, num_classes=21843),
}


def _tags(told):
    return {"in21k_ft_in1k": told, "in1k": told, "in21k": dict(told, num_classes=21843)}


_SMALL = dict(_TF, stem=32, limit=0)
_v2("tf_efficientnetv2_b0", _BASE, 192, 7_139_704, 0.53, ("in1k",), crop_pct=0.875, **_SMALL)
_v2("tf_efficientnetv2_b1", _BASE, 192, 8_141_052, 0.75, ("in1k",), depth=1.1, crop_pct=0.882, **_SMALL)
_v2("tf_efficientnetv2_b2", _BASE, 208, 10_096_086, 1.04, ("in1k",), width=1.1, depth=1.2, crop_pct=0.89, **_SMALL)
_v2("tf_efficientnetv2_b3", _BASE, 240, 14_358_406, 1.91, _B3, width=1.2, depth=1.4, crop_pct=0.904, **_SMALL)
_v2("tf_efficientnetv2_s", _S, 300, 21_458_488, 5.31, _tags(_INCEPTION), **_TF)
_v2("tf_efficientnetv2_m", _M, 384, 54_139_356, 15.74, _tags(_SQUASH), **_TF)
_v2("tf_efficientnetv2_l", _L, 384, 118_515_272, 35.90, _tags(_SQUASH), stem=32, **_TF)
_XL_TAGS = {tag: told for tag, told in _tags(_SQUASH).items() if tag != "in1k"}
_v2("tf_efficientnetv2_xl", _XL, 384, 208_119_808, 52.53, _XL_TAGS, stem=32, **_TF)
