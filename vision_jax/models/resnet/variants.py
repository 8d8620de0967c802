"""Every published variant of a ResNet whose blocks are convolutions, perhaps with attention over channels."""

from vision_jax.models.resnet.model import ResNet, ResNetConfig
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register

_RSB = dict(crop_pct=0.95)  # ResNet strikes back (Wightman et al., 2021, arXiv:2110.00476)
_TORCH = dict(interpolation="bilinear", licence="bsd-3-clause")
_FACEBOOK = dict(interpolation="bilinear", licence="cc-by-nc-4.0")
_TAGS = {  # published weights -> how their preprocessing differs from `Pretrained`'s defaults
    **{tag: {} for tag in ("ra", "ra2", "ram", "racm", "am", "bt", "c3", "gluon", "miil")},
    **dict.fromkeys(("a1", "a1h", "a2", "ah", "b1k", "b2k", "c1", "c2", "d"), _RSB),
    "a3": _RSB | dict(img_size=160),
    "ra4_e3600_r224": dict(mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.9),
    "tv": _TORCH,
    "tv2": _TORCH | dict(img_size=176),
    **dict.fromkeys(("fb_ssl_yfcc100m_ft", "fb_swsl_ig1b_ft", "fb_wsl_ig1b_ft"), _FACEBOOK),
}
BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {
    14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}  # fmt: skip
C, S = dict(deep_stem=(32, 32)), dict(deep_stem=(64, 64), stem_dim=128)
D, T = dict(C, avg_down=True), dict(deep_stem=(24, 32), avg_down=True)


def _resnet(name, layers, params, gmacs, tags, *, paper="1512.03385", own=(), **fields):
    """Registers a variant.

    `layers`: their number, or the depths of the stages of bottlenecks; `tags`: its published weights, without their
    "_in1k"; `own`: (tag, what differs further).
    """
    if isinstance(layers, int):
        block, depths = ("basic", BASIC[layers]) if layers in BASIC else ("bottleneck", BOTTLENECK[layers])
    else:
        block, depths = "bottleneck", layers
    known = {f"{tag}_in1k": dict(licence="apache-2.0") | _TAGS[tag] for tag in tags.split()}
    for tag, differences in own:
        known[tag] = known.get(tag, {}) | differences
    register(
        name, ResNet, ResNetConfig(block=block, depths=depths, **fields), params=params, gmacs=gmacs, paper=paper,
        licence=next(iter(known.values()))["licence"] if known else "", tags=known or ("",),
    )  # fmt: skip


_FB = "fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft"
_resnet("resnet18", 18, 11_689_512, 1.82, f"a1 a2 a3 tv gluon {_FB}")
_resnet("resnet26", 26, 15_995_176, 2.36, "bt")
_resnet("resnet34", 34, 21_797_672, 3.67, "a1 a2 a3 bt ra4_e3600_r224 tv gluon")
_resnet(
    "resnet50", 50, 25_557_032, 4.11, f"a1 a1h a2 a3 b1k b2k c1 c2 d ram am ra bt tv tv2 gluon {_FB}",
    own=(
        ("a1h_in1k", dict(img_size=176, crop_pct=0.9)),
        ("bamboo", dict(num_classes=0, crop_pct=1.0, licence="")),  # a backbone alone
    ),
)  # fmt: skip
_resnet("resnet101", 101, 44_549_160, 7.83, "a1h a1 a2 a3 tv tv2 gluon")
_resnet("resnet152", 152, 60_192_808, 11.56, "a1h a1 a2 a3 tv tv2 gluon")
_resnet("resnet200", 200, 64_673_832, 15.07, "")

_TRICKS = dict(paper="1812.01187")
_resnet("resnet50c", 50, 25_576_264, 4.35, "gluon", **_TRICKS, **C)
_resnet("resnet101c", 101, 44_568_392, 8.08, "gluon", **_TRICKS, **C)
_resnet("resnet152c", 152, 60_212_040, 11.80, "gluon", **_TRICKS, **C)
_resnet("resnet50s", 50, 25_680_808, 5.47, "gluon", **_TRICKS, **S)
_resnet("resnet101s", 101, 44_672_936, 9.19, "gluon", **_TRICKS, **S)
_resnet("resnet152s", 152, 60_316_584, 12.92, "gluon", **_TRICKS, **S)
_resnet("resnet18d", 18, 11_708_744, 2.06, "ra2 ra4_e3600_r224", **_TRICKS, **D)
_resnet("resnet26d", 26, 16_014_408, 2.60, "bt", **_TRICKS, **D)
_resnet("resnet34d", 34, 21_816_904, 3.91, "ra2", **_TRICKS, **D)
_resnet(
    "resnet50d", 50, 25_576_264, 4.35, "ra2 ra4_e3600_r224 a1 a2 a3 gluon",
    own=(("ra4_e3600_r224_in1k", dict(crop_pct=0.95)),), **_TRICKS, **D,
)  # fmt: skip
_AT_256 = dict(img_size=256, own=(("ra2_in1k", dict(crop_pct=0.95)), ("gluon_in1k", dict(img_size=224))))
_resnet("resnet101d", 101, 44_568_392, 10.55, "ra2 gluon", **_AT_256, **_TRICKS, **D)
_resnet("resnet152d", 152, 60_212_040, 15.41, "ra2 gluon", **_AT_256, **_TRICKS, **D)
_resnet(
    "resnet200d", 200, 64_693_064, 20.00, "ra2", img_size=256, own=(("ra2_in1k", dict(crop_pct=0.95)),), **_TRICKS, **D
)
_resnet("resnet10t", 10, 5_435_488, 0.70, "c3", img_size=176, **_TRICKS, **T)
_resnet("resnet14t", 14, 10_081_632, 1.07, "c3", img_size=176, **_TRICKS, **T)
_resnet(
    "resnet26t", 26, 16_011_872, 3.35, "ra2", img_size=256, own=(("ra2_in1k", dict(crop_pct=0.94)),), **_TRICKS, **T
)
_resnet("resnet50t", 50, 25_573_728, 4.32, "", **_TRICKS, **T)

_WIDE = dict(paper="1605.07146", base_width=128)
_resnet("wide_resnet50_2", 50, 68_883_240, 11.43, "racm tv tv2", **_WIDE)
_resnet("wide_resnet101_2", 101, 126_886_696, 22.80, "tv tv2", **_WIDE)


def _resnext(name, layers, cardinality, base_width, params, gmacs, tags, **fields):
    _resnet(
        name, layers, params, gmacs, tags, paper="1611.05431", cardinality=cardinality, base_width=base_width, **fields
    )


_resnext("resnext50_32x4d", 50, 32, 4, 25_028_904, 4.26, f"a1h a1 a2 a3 ra tv tv2 gluon {_FB}")
_resnext("resnext50d_32x4d", 50, 32, 4, 25_048_136, 4.50, "bt", **D)
_resnext("resnext101_32x4d", 101, 32, 4, 44_177_704, 8.01, f"{_FB} gluon")
_resnext("resnext101_64x4d", 101, 64, 4, 83_455_272, 15.52, "c1 tv gluon")
_resnext("resnext101_32x8d", 101, 32, 8, 88_791_336, 16.48, f"tv tv2 fb_wsl_ig1b_ft {_FB}")
_resnext("resnext101_32x16d", 101, 32, 16, 194_026_792, 36.27, f"fb_wsl_ig1b_ft {_FB}")
_resnext("resnext101_32x32d", 101, 32, 32, 468_530_472, 87.29, "fb_wsl_ig1b_ft")


_resnet("resnet50_gn", 50, 25_557_032, 4.14, "a1h", own=(("a1h_in1k", dict(crop_pct=0.94)),), norm="group")

_SE, _ECA = dict(paper="1709.01507", attn="se"), dict(paper="1910.03151", attn="eca")
_X, _X8 = dict(cardinality=32, base_width=4), dict(cardinality=32, base_width=8)
_resnet("seresnet18", 18, 11_779_624, 1.82, "", **_SE)
_resnet("seresnet34", 34, 21_960_416, 3.67, "", **_SE)
_resnet("seresnet50", 50, 28_088_024, 4.11, "a1 a2 a3 ra2", **_SE)
_resnet("seresnet50t", 50, 28_104_720, 4.32, "", **_SE, **T)
_resnet("seresnet101", 101, 49_326_872, 7.84, "", **_SE)
_resnet("seresnet152", 152, 66_821_848, 11.57, "", **_SE)
_AT_95 = dict(own=(("ra2_in1k", dict(crop_pct=0.95)),))
_resnet("seresnet152d", 152, 66_841_080, 15.42, "ra2", img_size=256, **_AT_95, **_SE, **D)
_resnet("seresnet200d", 200, 71_855_096, 20.01, "", img_size=256, **_SE, **D)
_resnet("seresnet269d", 269, 113_672_760, 26.59, "", img_size=256, **_SE, **D)
_resnet("seresnext26d_32x4d", 26, 16_809_512, 2.73, "bt", **_SE, **_X, **D)
_resnet("seresnext26t_32x4d", 26, 16_806_976, 2.70, "bt", **_SE, **_X, **T)
_resnet("seresnext50_32x4d", 50, 27_559_896, 4.26, "racm gluon", **_SE, **_X)
_resnet("seresnext101_32x4d", 101, 48_955_416, 8.02, "gluon", **_SE, **_X)
_resnet("seresnext101_32x8d", 101, 93_569_048, 16.48, "ah", **_SE, **_X8)
_resnet("seresnext101d_32x8d", 101, 93_588_280, 16.72, "ah", **_SE, **_X8, **D)
_resnet("seresnext101_64x4d", 101, 88_232_984, 15.53, "gluon", **_SE, cardinality=64, base_width=4)
_resnet(
    "senet154", 152, 115_088_984, 20.77, "gluon", **_SE, **S, cardinality=64, base_width=4, reduce_first=2,
    shortcut_kernel=3,
)  # fmt: skip

_resnet("ecaresnet26t", 26, 16_011_916, 3.35, "ra2", img_size=256, **_ECA, **T)
_resnet("ecaresnet50d", 50, 25_576_350, 4.35, "miil", **_ECA, **D)
_224 = tuple((f"{tag}_in1k", dict(img_size=224)) for tag in ("a1", "a2"))
_resnet("ecaresnet50t", 50, 25_573_814, 5.64, "ra2 a1 a2 a3", img_size=256, own=_224, **_ECA, **T)
_resnet("ecaresnetlight", (1, 1, 11, 3), 30_162_046, 4.11, "miil", **_ECA, avg_down=True)
_resnet("ecaresnet101d", 101, 44_568_563, 8.08, "miil", **_ECA, **D)
_resnet("ecaresnet200d", 200, 64_693_400, 20.00, "", img_size=256, **_ECA, **D)
_resnet("ecaresnet269d", 269, 102_093_077, 41.53, "ra2", img_size=320, **_AT_95, **_ECA, **D)
_resnet("ecaresnext26t_32x4d", 26, 15_406_220, 2.70, "", **_ECA, **_X, **T)
# timm's table still has the multiply-adds of the one before
_resnet("ecaresnext50t_32x4d", 50, 25_045_686, 4.44, "", **_ECA, **_X, **T)

# channels left by Aflalo et al., 2020 (arXiv:2002.08258): a stage's, and of each block's first two convolutions
_PRUNED = {
    50: (
        (19, ((47, 18), (52, 22), (64, 35))),
        (171, ((85, 37), (107, 80), (120, 85), (125, 87))),
        (818, ((198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239))),
        (2022, ((492, 237), (512, 500), (512, 490))),
    ),
    101: (
        (26, ((45, 25), (53, 20), (60, 27))),
        (142, ((81, 24), (93, 49), (102, 54), (122, 78))),
        (
            278,
            (
                (101, 25), (239, 160), (234, 156), (250, 176), (253, 191), (251, 175), (230, 128), (244, 154),
                (244, 159), (238, 97), (244, 149), (253, 181), (245, 119), (255, 216), (256, 201), (253, 149),
                (254, 141), (256, 190), (256, 217), (255, 156), (256, 155), (256, 232), (256, 214),
            ),
        ),
        (2042, ((499, 289), (512, 512), (512, 502))),
    ),
}  # fmt: skip
_resnet("ecaresnet50d_pruned", 50, 19_939_713, 2.53, "miil", **_ECA, **D, pruned=_PRUNED[50])
_resnet("ecaresnet101d_pruned", 101, 24_876_040, 3.48, "miil", **_ECA, **D, pruned=_PRUNED[101])

_BLUR = dict(paper="1904.11486", anti_alias="blur")
_resnet("resnetblur18", 18, 11_689_512, 2.34, "", **_BLUR)
_resnet("resnetblur50", 50, 25_557_032, 5.16, "bt", **_BLUR)
_resnet("resnetblur50d", 50, 25_576_264, 5.40, "", **_BLUR, **D)
_resnet("resnetblur101d", 101, 44_568_392, 9.12, "", **_BLUR, **D)

_12K = dict(licence="apache-2.0", crop_pct=0.95, num_classes=11_821)
_SW = (("sw_in12k_ft_in1k", dict(_12K, num_classes=1000)), ("sw_in12k", _12K))
_MEAN = dict(paper="1904.11486", anti_alias="mean")
_resnet("resnetaa34d", 34, 21_816_904, 4.43, "", **_MEAN, **D)
_resnet("resnetaa50", 50, 25_557_032, 5.15, "a1h", **_MEAN)
_resnet("resnetaa50d", 50, 25_576_264, 5.39, "", own=(*_SW, ("d_in12k", _12K)), **_MEAN, **D)
_resnet("resnetaa101d", 101, 44_568_392, 9.12, "", own=_SW, **_MEAN, **D)
_MEAN = dict(_SE, anti_alias="mean")
_resnet("seresnetaa50d", 50, 28_107_256, 5.40, "", **_MEAN, **D)
_AT_288 = (
    ("sw_in12k_ft_in1k_288", dict(_12K, num_classes=1000)),
    ("sw_in12k_ft_in1k", dict(_12K, num_classes=1000, img_size=224, crop_pct=0.875)),
    ("sw_in12k", dict(_12K, img_size=224)),
    ("ah_in1k", dict(_RSB, img_size=224, licence="apache-2.0")),
)
_resnet("seresnextaa101d_32x8d", 101, 93_588_280, 28.51, "", img_size=288, own=_AT_288, **_MEAN, **_X8, **D)
_AT_384 = (
    ("sw_in12k_ft_in1k_384", dict(_12K, num_classes=1000, crop_pct=1.0)),
    ("sw_in12k", dict(_12K, img_size=320)),
)
_resnet(
    "seresnextaa201d_32x8d", (3, 24, 36, 4), 149_394_904, 101.11, "", img_size=384, own=_AT_384, **_MEAN, **_X8, **S,
    avg_down=True,
)  # fmt: skip


def _rs(layers, depths, params, gmacs, img_size, crop_pct):
    own = (("tf_in1k", dict(crop_pct=crop_pct, licence="apache-2.0")),)
    _resnet(
        f"resnetrs{layers}", depths, params, gmacs, "", own=own,
        paper="2103.07579", img_size=img_size, attn="se", se_ratio=0.25, stem_pool="conv", **D,
    )  # fmt: skip


_rs(50, BOTTLENECK[50], 35_691_912, 2.29, 160, 0.91)
_rs(101, BOTTLENECK[101], 63_618_696, 6.04, 192, 0.94)
_rs(152, BOTTLENECK[152], 86_621_576, 15.59, 256, 1.0)
_rs(200, BOTTLENECK[200], 93_209_992, 20.18, 256, 1.0)
_rs(270, (4, 29, 53, 4), 129_861_448, 27.06, 256, 1.0)
_rs(350, (4, 36, 72, 4), 163_956_168, 43.67, 288, 1.0)
_rs(420, (4, 44, 87, 4), 191_891_656, 64.20, 320, 1.0)


def _bcn(name, layers, file, params, gmacs, **fields):
    register(
        f"{name}_bcn_ws", ResNet,
        ResNetConfig(block="bottleneck", depths=BOTTLENECK[layers], norm="batch_channel", **fields),
        params=params, gmacs=gmacs, paper="1911.09738", reference="joe-siyuan-qiao/Batch-Channel-Normalization",
        licence="mit", interpolation="bilinear", hub="",
        tags={"in1k": dict(url=f"https://cs.jhu.edu/~syqiao/BatchChannelNormalization/{file}_bcn_ws.pth")},
    )  # fmt: skip


_bcn("resnet50", 50, "rn50", 25_560_424, 4.11)
_bcn("resnet101", 101, "rn101", 44_555_816, 7.83)
_bcn("resnext50_32x4d", 50, "rx50", 25_032_296, 4.26, cardinality=32, base_width=4)
