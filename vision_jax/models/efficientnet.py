"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan & Le, 2019, arXiv:1905.11946).

MnasNet's search gives a small network, B0; one factor then scales depth, width and resolution together, as 1.2, 1.1 and
1.15 to its power, from B0 to B8 and L2. The Lite variants drop squeeze-and-excitation and take relu6, for integer
arithmetic on phones; the EdgeTPU ones (es, em, el: Gupta & Tan, 2019) fuse the first inverted bottlenecks. Official
repository: tensorflow/tpu (models/official/efficientnet); compared here with timm's, whose `tf_` variants have its
padding and epsilons for the official weights, and the others symmetric padding for weights of timm's own training.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register

SE = 0.25
_B0 = (
    (Blocks("separable", 1, 3, 1, 1, 16, SE),),
    (Blocks("mbconv", 2, 3, 2, 6, 24, SE),),
    (Blocks("mbconv", 2, 5, 2, 6, 40, SE),),
    (Blocks("mbconv", 3, 3, 2, 6, 80, SE),),
    (Blocks("mbconv", 3, 5, 1, 6, 112, SE),),
    (Blocks("mbconv", 4, 5, 2, 6, 192, SE),),
    (Blocks("mbconv", 1, 3, 1, 6, 320, SE),),
)
_LITE = tuple((row._replace(se=0.0),) for (row,) in _B0)
_EDGE = (
    (Blocks("fused", 1, 3, 1, 4, 24, skip=False),),
    (Blocks("fused", 2, 3, 2, 8, 32),),
    (Blocks("fused", 4, 3, 2, 8, 48),),
    (Blocks("mbconv", 5, 5, 2, 8, 96),),
    (Blocks("mbconv", 4, 5, 1, 8, 144),),
    (Blocks("mbconv", 2, 5, 2, 8, 192),),
)
_SCALES = {  # factors of width and depth, as the released code has them, and parameters
    "b0": (1.0, 1.0, 5_288_548),
    "b1": (1.0, 1.1, 7_794_184),
    "b2": (1.1, 1.2, 9_109_994),
    "b3": (1.2, 1.4, 12_233_232),
    "b4": (1.4, 1.8, 19_341_616),
    "b5": (1.6, 2.2, 30_389_784),
    "b6": (1.8, 2.6, 43_040_704),
    "b7": (2.0, 3.1, 66_347_960),
    "b8": (2.2, 3.6, 87_413_142),
    "l2": (4.3, 5.3, 480_309_308),
    "lite0": (1.0, 1.0, 4_652_008),
    "lite1": (1.0, 1.1, 5_416_680),
    "lite2": (1.1, 1.2, 6_092_072),
    "lite3": (1.2, 1.4, 8_197_096),
    "lite4": (1.4, 1.8, 13_006_568),
    "es": (1.0, 1.0, 5_438_392),
    "em": (1.0, 1.1, 6_899_496),
    "el": (1.2, 1.4, 10_589_712),
}
_INCEPTION = dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)


class EfficientNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _config(size, **fields):
    """The configuration of a size."""
    width, depth, _ = _SCALES[size]
    if size.startswith("lite"):
        return InvertedResidualConfig(stages=scaled(_LITE, width, depth, fixed_ends=True), act="relu6", **fields)
    ends = dict(stem_dim=round_channels(32 * width), head_dim=round_channels(1280 * width))
    if not size.startswith("e"):
        return InvertedResidualConfig(stages=scaled(_B0, width, depth), act="silu", **ends, **fields)
    # the first block's hidden channels too are four times those that it gives, not those of the stem
    (first,), *others = scaled(_EDGE, width, depth)
    wide = first._replace(repeats=1, expansion=4 * first.dim / ends["stem_dim"])
    stages = ((wide, first._replace(repeats=first.repeats - 1)), *others)
    return InvertedResidualConfig(stages=stages, **ends, **fields)


def _efficientnet(size, img_size, crop_pct, gmacs, tags=("",), prefix="", told=None, **fields):
    register(
        f"{prefix}efficientnet_{size}", EfficientNet, _config(size, img_size=img_size, **fields),
        params=_SCALES[size][2], gmacs=gmacs, paper="1905.11946", licence="apache-2.0", tags=tags, crop_pct=crop_pct,
        **(told or {}),
    )  # fmt: skip


def _tf(size, img_size, crop_pct, gmacs, tags, **told):
    tags = {tag: _INCEPTION if tag == "ap_in1k" else {} for tag in tags} if isinstance(tags, tuple) else tags
    tf = dict(prefix="tf_", same_padding=True, epsilon=1e-3)
    _efficientnet(size, img_size, crop_pct, gmacs, tags, told=told, **tf)


# Multiply-adds are the paper's at its image sizes, timm's or counted at others and of what is not in it.
_OWN = {"ra4_e3600_r240_in1k": dict(_INCEPTION, crop_pct=0.9), "ft_in1k": dict(img_size=224)}
_12K = {
    "sw_in12k_ft_in1k": dict(crop_mode="squash"),
    "sw_in12k": dict(img_size=416, crop_pct=0.95, num_classes=11821),
}
_efficientnet("b0", 224, 0.875, 0.39, {"ra_in1k": {}, "ra4_e3600_r224_in1k": dict(_INCEPTION, crop_pct=0.9)})
_efficientnet("b1", 240, 0.875, 0.70, _OWN)
_efficientnet("b2", 256, 0.875, 0.86, ("ra_in1k",))
_efficientnet("b3", 288, 0.875, 1.59, ("ra2_in1k",))
_efficientnet("b4", 320, 0.875, 3.06, ("ra2_in1k",))
_efficientnet("b5", 448, 1.0, 9.59, _12K)
_efficientnet("b6", 528, 0.942, 19.0)
_efficientnet("b7", 600, 0.949, 37.0)
_efficientnet("b8", 672, 0.954, 63.48)
_efficientnet("l2", 800, 0.961, 479.12)

_ALL = ("ns_jft_in1k", "ap_in1k", "aa_in1k", "in1k")
_RA = (*_ALL[:2], "ra_in1k", *_ALL[2:])
_tf("b0", 224, 0.875, 0.39, _ALL)
_tf("b1", 240, 0.882, 0.70, _ALL)
_tf("b2", 260, 0.89, 1.0, _ALL)
_tf("b3", 300, 0.904, 1.8, _ALL)
_tf("b4", 380, 0.922, 4.2, _ALL)
_tf("b5", 456, 0.934, 9.9, _RA)
_tf("b6", 528, 0.942, 19.0, _ALL[:3])
_tf("b7", 600, 0.949, 37.0, _RA[:4])
_tf("b8", 672, 0.954, 63.48, ("ap_in1k", "ra_in1k"))
_tf("l2", 475, 0.936, 172.11, {"ns_jft_in1k_475": {}, "ns_jft_in1k": dict(img_size=800, crop_pct=0.96)})

_efficientnet("lite0", 224, 0.875, 0.40, ("ra_in1k",))
_efficientnet("lite1", 240, 0.882, 0.62)
_efficientnet("lite2", 260, 0.89, 0.89)
_efficientnet("lite3", 300, 0.904, 1.65)
_efficientnet("lite4", 380, 0.922, 4.04)
_tf("lite0", 224, 0.875, 0.40, ("in1k",), **_INCEPTION)
_tf("lite1", 240, 0.882, 0.62, ("in1k",), **_INCEPTION)
_tf("lite2", 260, 0.89, 0.89, ("in1k",), **_INCEPTION)
_tf("lite3", 300, 0.904, 1.65, ("in1k",), interpolation="bilinear", **_INCEPTION)
_tf("lite4", 380, 0.92, 4.04, ("in1k",), interpolation="bilinear", **_INCEPTION)

_efficientnet("es", 224, 0.875, 1.81, ("ra_in1k",))
_efficientnet("em", 240, 0.882, 3.04, ("ra2_in1k",))
_efficientnet("el", 300, 0.904, 8.00, ("ra_in1k",))
_tf("es", 224, 0.875, 1.81, ("in1k",), **_INCEPTION)
_tf("em", 240, 0.882, 3.04, ("in1k",), **_INCEPTION)
_tf("el", 300, 0.904, 8.00, ("in1k",), **_INCEPTION)
