"""MobileNetV3: Searching for MobileNetV3 (Howard et al., 2019, arXiv:1905.02244).

MnasNet's search, then hand work: the hard swish x relu6(x + 3) / 6 in the deeper half, squeeze-and-excitation with a
hard sigmoid from a quarter of the hidden channels, and a last layer that follows the pooling, so that it costs almost
nothing. The minimal variants do without these three. Official repository: tensorflow/models
(research/slim/nets/mobilenet); compared here with timm's, whose `tf_` variants have its padding and epsilons.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register

SE = 0.25
_LARGE = (
    (Blocks("separable", 1, 3, 1, 1, 16, act="relu"),),
    (Blocks("mbconv", 1, 3, 2, 4, 24, act="relu"), Blocks("mbconv", 1, 3, 1, 3, 24, act="relu")),
    (Blocks("mbconv", 3, 5, 2, 3, 40, SE, act="relu"),),
    (Blocks("mbconv", 1, 3, 2, 6, 80), Blocks("mbconv", 1, 3, 1, 2.5, 80), Blocks("mbconv", 2, 3, 1, 2.3, 80)),
    (Blocks("mbconv", 2, 3, 1, 6, 112, SE),),
    (Blocks("mbconv", 3, 5, 2, 6, 160, SE),),
    (Blocks("conv", 1, 1, 1, 1, 960),),
)
_SMALL = (
    (Blocks("separable", 1, 3, 2, 1, 16, SE, act="relu"),),
    (Blocks("mbconv", 1, 3, 2, 4.5, 24, act="relu"), Blocks("mbconv", 1, 3, 1, 3.67, 24, act="relu")),
    (Blocks("mbconv", 1, 5, 2, 4, 40, SE), Blocks("mbconv", 2, 5, 1, 6, 40, SE)),
    (Blocks("mbconv", 2, 5, 1, 3, 48, SE),),
    (Blocks("mbconv", 3, 5, 2, 6, 96, SE),),
    (Blocks("conv", 1, 1, 1, 1, 576),),
)


def _minimal(stages):
    """The same without squeeze-and-excitation, other activations and 5x5 kernels."""
    return tuple(
        tuple(row._replace(kernel_size=min(row.kernel_size, 3), se=0.0, act=None) for row in stage) for stage in stages
    )


class MobileNetV3(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _mobilenetv3(name, stages, params, gmacs, tags=("",), *, width=1.0, depth=1.0, img_size=224, told=None, **fields):
    tables = {"large": (_LARGE, 1280), "small": (_SMALL, 1024)}
    stages, head_dim = tables[stages] if isinstance(stages, str) else stages
    config = dict(
        stages=scaled(stages, width, depth), stem_dim=round_channels(16 * width) if width >= 0.75 else 16,
        head_dim=head_dim, pooled_head=True, act="hard_swish", se_act="relu", se_gate="hard_sigmoid",
        se_from_hidden=True, se_divisor=8, img_size=img_size,
    )  # fmt: skip
    register(
        name, MobileNetV3, InvertedResidualConfig(**{**config, **fields}), params=params, gmacs=gmacs,
        paper="1905.02244", licence="apache-2.0", tags=tags, **(told or {}),
    )  # fmt: skip


_INCEPTION = dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)
_MIIL = dict(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")
_LARGE_TAGS = {
    "ra_in1k": {},
    "ra4_e3600_r224_in1k": dict(_INCEPTION, crop_pct=0.95),
    "miil_in21k_ft_in1k": _MIIL,
    "miil_in21k": dict(_MIIL, num_classes=11221),
}
_mobilenetv3("mobilenetv3_large_075", "large", 3_993_528, 0.155, width=0.75, told=dict(interpolation="bilinear"))
_mobilenetv3("mobilenetv3_large_100", "large", 5_483_032, 0.219, _LARGE_TAGS)
_mobilenetv3(
    "mobilenetv3_large_150d", "large", 14_622_320, 1.01, {"ra4_e3600_r256_in1k": _INCEPTION}, width=1.5,
    depth=1.2, img_size=256, told=dict(crop_pct=0.95, interpolation="bilinear"),
)  # fmt: skip
_mobilenetv3("mobilenetv3_small_050", "small", 1_593_224, 0.03, ("lamb_in1k",), width=0.5)
_mobilenetv3("mobilenetv3_small_075", "small", 2_041_872, 0.044, ("lamb_in1k",), width=0.75)
_mobilenetv3("mobilenetv3_small_100", "small", 2_542_856, 0.056, ("lamb_in1k",))
# timm's own reading of the paper, before the code was released
_RW = ((_LARGE[0][0]._replace(skip=False),), *_LARGE[1:])
_mobilenetv3(
    "mobilenetv3_rw", (_RW, 1280), 5_479_918, 0.23, ("rmsp_in1k",), head_bias=False, se_act=None, se_divisor=1,
    epsilon=1e-3,
)  # fmt: skip

_TF = dict(same_padding=True, epsilon=1e-3, told=dict(_INCEPTION, interpolation="bilinear"))
_MINIMAL = dict(_TF, act="relu")
_mobilenetv3("tf_mobilenetv3_large_075", "large", 3_993_528, 0.155, ("in1k",), width=0.75, **_TF)
_mobilenetv3("tf_mobilenetv3_large_100", "large", 5_483_032, 0.219, ("in1k",), **_TF)
_mobilenetv3("tf_mobilenetv3_large_minimal_100", (_minimal(_LARGE), 1280), 3_924_288, 0.209, ("in1k",), **_MINIMAL)
_mobilenetv3("tf_mobilenetv3_small_075", "small", 2_041_872, 0.044, ("in1k",), width=0.75, **_TF)
_mobilenetv3("tf_mobilenetv3_small_100", "small", 2_542_856, 0.056, ("in1k",), **_TF)
_mobilenetv3("tf_mobilenetv3_small_minimal_100", (_minimal(_SMALL), 1024), 2_044_736, 0.065, ("in1k",), **_MINIMAL)
