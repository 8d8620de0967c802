"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan & Le, 2019, arXiv:1905.11946).

MnasNet's search gives a small network, B0; one factor then scales depth, width and resolution together, as 1.2, 1.1 and
1.15 to its power, from B0 to B8 and L2. The Lite variants drop squeeze-and-excitation and take relu6, for integer
arithmetic on phones; the EdgeTPU ones (es, em, el: Gupta & Tan, 2019) fuse the first inverted bottlenecks. Official
repository: tensorflow/tpu (models/official/efficientnet); compared here with timm's, whose `tf_` variants have its
padding and epsilons for the official weights, and the others symmetric padding for weights of timm's own training.

Beside them: `cc`, in whose last stages an image has kernels of its own (CondConv: Yang et al., 2019, arXiv:1904.04971);
`x` and `h`, whose first stages suit matrix units (EfficientNet-X: Li et al., 2021, arXiv:2102.05610); `pruned`, without
the channels that a knapsack left out (Aflalo et al., 2020, arXiv:2002.08258), or with weights that are zero (es, el);
and timm's own with group norms (`gn`), wider groups than of one channel (`g8`; `g16_evos`, which has batch norms still)
and blurs.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import B0, Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register

_LITE = tuple((row._replace(se=0.0),) for (row,) in B0)
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
_TF = dict(same_padding=True, epsilon=1e-3)


class EfficientNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _ends(width, divisor=8):
    return dict(stem_dim=round_channels(32 * width, divisor), head_dim=round_channels(1280 * width, divisor))


def _config(size, stages=B0, divisor=8, **fields):
    """The configuration of a size."""
    width, depth, _ = _SCALES[size]
    if size.startswith("lite"):
        return InvertedResidualConfig(stages=scaled(_LITE, width, depth, fixed_ends=True), act="relu6", **fields)
    ends = _ends(width, divisor)
    if not size.startswith("e"):
        stages = scaled(stages, width, depth, divisor=divisor)
        return InvertedResidualConfig(stages=stages, act="silu", **ends, **fields)
    # the first block's hidden channels too are four times those that it gives, not those of the stem
    (first,), *others = scaled(_EDGE, width, depth)
    wide = first._replace(repeats=1, expansion=4 * first.dim / ends["stem_dim"])
    stages = ((wide, first._replace(repeats=first.repeats - 1)), *others)
    return InvertedResidualConfig(stages=stages, **ends, **fields)


def _register(name, config, params, gmacs, tags=("",), paper="1905.11946", **told):
    register(
        name, EfficientNet, config, params=params, gmacs=gmacs, paper=paper, licence="apache-2.0", tags=tags, **told
    )  # fmt: skip


def _efficientnet(size, img_size, crop_pct, gmacs, tags=("",), prefix="", told=None, **fields):
    config, params = _config(size, img_size=img_size, **fields), _SCALES[size][2]
    _register(f"{prefix}efficientnet_{size}", config, params, gmacs, tags, crop_pct=crop_pct, **(told or {}))


def _tf(size, img_size, crop_pct, gmacs, tags, **told):
    tags = {tag: _INCEPTION if tag == "ap_in1k" else {} for tag in tags} if isinstance(tags, tuple) else tags
    _efficientnet(size, img_size, crop_pct, gmacs, tags, prefix="tf_", told=told, **_TF)


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
_register("efficientnet_es_pruned", _config("es"), 5_438_392, 1.79, ("in1k",))
_register("efficientnet_el_pruned", _config("el", img_size=300), 10_589_712, 7.94, ("in1k",), crop_pct=0.904)


def _grouped(group_width):
    return tuple((row._replace(group_width=group_width),) for (row,) in B0)


_B0_GN, _B3_GN = dict(norm_width=8), dict(divisor=16, norm_width=16, img_size=288)
_register("efficientnet_b0_gn", _config("b0", **_B0_GN), 5_288_548, 0.39)
_register("efficientnet_b0_g8_gn", _config("b0", _grouped(8), **_B0_GN), 6_562_660, 0.63)
_register("efficientnet_b0_g16_evos", _config("b0", _grouped(16), divisor=16), 8_107_756, 1.00)
_register("efficientnet_b3_gn", _config("b3", **_B3_GN), 11_733_784, 1.62, crop_pct=1.0)
_register("efficientnet_b3_g8_gn", _config("b3", _grouped(8), **_B3_GN), 14_251_432, 2.47, crop_pct=1.0)
_register("efficientnet_blur_b0", _config("b0", shrink="blur"), 5_288_548, 0.41)


def _conditional(size, num_experts, params, gmacs, **fields):
    stages = (*B0[:4], *((row._replace(num_experts=num_experts),) for (row,) in B0[4:]))
    name, crop_pct = f"efficientnet_cc_{size}_{num_experts}e", 0.875 if size == "b0" else 0.882
    how = dict(paper="1904.04971", crop_pct=crop_pct)
    _register(name, _config(size, stages, **fields), params, gmacs, **how)
    _register(f"tf_{name}", _config(size, stages, **fields, **_TF), params, gmacs, ("in1k",), **how, **_INCEPTION)


_conditional("b0", 4, 13_314_116, 0.40)
_conditional("b0", 8, 24_013_284, 0.41)
_conditional("b1", 8, 39_715_968, 0.72, img_size=240)


def _x(name, width, depth, expansion, params, gmacs, tags=("",), *, img_size, **how):
    """The first stage on a map of half the size and four times the channels; the second leaves the size as it is."""
    fused = ((row._replace(kind="fused", expansion=expansion, act="relu"),) for (row,) in B0[1:3])
    table = (B0[0], *fused, (B0[3][0]._replace(expansion=expansion),), *B0[4:])
    (first,), (second,), *others = scaled(table, width, depth)
    dim = 4 * first.dim
    fold = Blocks("folded", 1, 3, 2, 4, dim, first.se)
    unfold = second._replace(repeats=1, stride=1, expansion=second.expansion / 4)
    stages = (
        (fold, first._replace(repeats=first.repeats - 1, dim=dim)),
        (unfold, second._replace(repeats=second.repeats - 1)),
        *others,
    )
    config = InvertedResidualConfig(stages=stages, act="silu", img_size=img_size, **_ends(width))
    _register(name, config, params, gmacs, tags, "2102.05610", **how)


_SW = dict(tags=("sw_r448_e450_in1k",), img_size=448, crop_pct=1.0, crop_mode="squash")
_x("efficientnet_x_b3", 1.2, 1.4, 6, 13_299_652, 3.87, img_size=288, crop_pct=0.95)
_x("efficientnet_x_b5", 1.6, 2.2, 6, 33_439_614, 23.21, **_SW)
_x("efficientnet_h_b5", 1.92, 2.2, 4, 45_884_172, 27.02, **_SW)

_PRUNED = {  # of each stage: channels, and each block's squeezed and hidden ones
    "b1": (
        (16, (8, 4), (32, 16)),
        (12, (4, 6, 6), (48, 62, 48)),
        (35, (6, 10, 10), (70, 61, 51)),
        (74, (10, 20, 20, 20), (175, 188, 137, 164)),
        (67, (20, 28, 28, 28), (399, 201, 160, 213)),
        (192, (27, 48, 48, 48, 48), (637, 806, 798, 891, 990)),
        (320, (48, 80), (1152, 1912)),
    ),
    "b2": (
        (16, (8, 4), (32, 16)),
        (17, (4, 6, 6), (54, 69, 61)),
        (42, (6, 12, 12), (86, 72, 98)),
        (85, (12, 22, 22, 22), (245, 274, 254, 292)),
        (116, (22, 30, 30, 30), (502, 315, 354, 443)),
        (208, (30, 52, 52, 52, 52), (719, 1148, 1160, 1182, 1228)),
        (352, (52, 88), (1248, 2112)),
    ),
    "b3": (
        (24, (10, 6), (40, 24)),
        (12, (6, 8, 8), (27, 49, 48)),
        (40, (8, 12, 12), (83, 90, 85)),
        (93, (12, 24, 24, 24, 24), (215, 261, 219, 254, 236)),
        (120, (24, 34, 34, 33, 34), (480, 235, 217, 226, 340)),
        (232, (34, 58, 58, 58, 58, 58), (802, 1030, 924, 1016, 1130, 1266)),
        (384, (58, 96), (1392, 2301)),
    ),
}


def _pruned(size, img_size, crop_pct, params, gmacs):
    stages = tuple(
        tuple(row._replace(repeats=1, dim=dim, squeezed=s, hidden=h) for s, h in zip(squeezed, hidden, strict=True))
        for (row,), (dim, squeezed, hidden) in zip(B0, _PRUNED[size], strict=True)
    )
    config = InvertedResidualConfig(stages=stages, act="silu", img_size=img_size, **_ends(_SCALES[size][0]), **_TF)
    how = dict(crop_pct=crop_pct, **_INCEPTION)
    _register(f"efficientnet_{size}_pruned", config, params, gmacs, ("in1k",), "2002.08258", **how)


_pruned("b1", 240, 0.882, 6_331_916, 0.39)
_pruned("b2", 260, 0.89, 8_309_737, 0.72)
_pruned("b3", 300, 0.904, 9_855_020, 1.02)
