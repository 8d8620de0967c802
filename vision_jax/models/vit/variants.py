"""Every published variant: what its name says, what it does not, and its weights."""

import functools

from vision_jax.models.vit.rows import register_rows
from vision_jax.registry import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD

_IMAGENET = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
_INCEPTION = dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)
_CLIP = dict(mean=CLIP_MEAN, std=CLIP_STD)
_UNIT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_TAGS = {  # in what published weights differ from the model's own fields
    "augreg_in21k": dict(num_classes=21_843),
    "orig_in21k": dict(num_classes=0),
    "dino": dict(num_classes=0, **_IMAGENET),
    "mae": dict(num_classes=0, licence="cc-by-nc-4.0", **_IMAGENET),
    "bamboo": dict(num_classes=115_217, crop_pct=1.0, licence="", **_CLIP),
    "in21k": dict(interpolation="bilinear"),
    "in21k_ft_in1k": dict(num_classes=1000, interpolation="bilinear"),
    **{tag: dict(num_classes=11_821) for tag in ("sbb_in12k", "sbb2_e200_in12k", "sbb_e200_in12k", "sbb_e250_in12k")},
    "webli_ft_in1k": dict(num_classes=1000, crop_pct=1.0, crop_mode="squash"),
    "fb_in22k_ft_in1k": dict(crop_pct=1.0),
}
_IJEPA = dict(num_classes=0, licence="cc-by-nc-4.0", hub="", **_IMAGENET)  # published as pickles alone
_SO150M = dict(no_embed_class=False, layer_scale_init=None, fc_norm=False)
_SO150M2 = dict(no_embed_class=False, qkv_bias=False)
_GIANT = dict(embed_dim=1536, num_heads=24, mlp_ratio=2 * 2.66667, mlp="swiglu")


_register = functools.partial(register_rows, own=_TAGS)

_register(
    (
        ("vit_tiny_patch16_224", 5_717_416, 1.26, "augreg_in21k_ft_in1k augreg_in21k"),
        ("vit_tiny_patch16_384", 5_790_376, 4.70, "augreg_in21k_ft_in1k", dict(crop_pct=1.0)),
        ("vit_small_patch32_224", 22_878_952, 1.15, "augreg_in21k_ft_in1k augreg_in21k"),
        ("vit_small_patch32_384", 22_915_432, 3.45, "augreg_in21k_ft_in1k", dict(crop_pct=1.0)),
        ("vit_small_patch16_36x1_224", 64_665_448, 13.71, "", dict(depth=36, layer_scale_init=1e-5)),
        ("vit_small_patch16_224", 22_050_664, 4.61, "augreg_in21k_ft_in1k augreg_in1k augreg_in21k dino"),
        ("vit_small_patch16_384", 22_196_584, 15.52, "augreg_in21k_ft_in1k augreg_in1k", dict(crop_pct=1.0)),
        ("vit_small_patch8_224", 21_670_272, 22.44, "dino", dict(num_classes=0)),
        ("vit_base_patch32_224", 88_224_232, 4.41, "augreg_in21k_ft_in1k augreg_in1k orig_in21k augreg_in21k sam_in1k"),
        ("vit_base_patch32_384", 88_297_192, 13.06, "augreg_in21k_ft_in1k augreg_in1k", dict(crop_pct=1.0)),
        (
            "vit_base_patch32_plus_256", 119_478_120, 7.79,
            "", dict(crop_pct=0.95, embed_dim=896, num_heads=14, layer_scale_init=1e-5),
        ),
        (
            "vit_base_patch16_224", 86_567_656, 17.58,
            "augreg2_in21k_ft_in1k augreg_in21k_ft_in1k orig_in21k_ft_in1k augreg_in1k orig_in21k "
            "augreg_in21k sam_in1k bamboo dino mae",
        ),
        (
            "vit_base_patch16_224_miil", 94_399_957, 17.59,
            "in21k in21k_ft_in1k", dict(crop_pct=0.875, num_classes=11221, qkv_bias=False, **_UNIT),
        ),
        (
            "vit_base_patch16_384", 86_859_496, 55.54,
            "augreg_in21k_ft_in1k orig_in21k_ft_in1k augreg_in1k", dict(crop_pct=1.0),
        ),
        (
            "vit_base_patch16_plus_240", 117_557_992, 27.41,
            "", dict(crop_pct=0.95, embed_dim=896, num_heads=14, layer_scale_init=1e-5),
        ),
        ("vit_base_patch8_224", 86_576_872, 78.22, "augreg2_in21k_ft_in1k augreg_in21k_ft_in1k augreg_in21k dino"),
        ("vit_large_patch32_224", 305_510_400, 15.39, "orig_in21k", dict(num_classes=0)),
        ("vit_large_patch32_384", 306_632_680, 45.31, "orig_in21k_ft_in1k", dict(crop_pct=1.0)),
        ("vit_large_patch16_224", 304_326_632, 61.60, "augreg_in21k_ft_in1k orig_in21k augreg_in21k mae"),
        ("vit_large_patch16_384", 304_715_752, 191.21, "augreg_in21k_ft_in1k", dict(crop_pct=1.0)),
        ("vit_large_patch14_224", 304_203_752, 81.08, ""),
        ("vit_huge_patch14_224", 630_764_800, 167.40, "orig_in21k mae", dict(num_classes=0)),
        ("vit_giant_patch14_224", 1_012_611_432, 267.18, ""),
        ("vit_gigantic_patch14_224", 1_844_440_680, 483.95, ""),
    ),
    paper="2010.11929", crop_pct=0.9, **_INCEPTION,
)  # fmt: skip
_register(
    (
        (
            "vit_medium_patch16_gap_240", 44_396_589, 9.22,
            "sw_in12k", dict(num_classes=11821, qkv_bias=False, layer_scale_init=1e-6),
        ),
        (
            "vit_medium_patch16_gap_256", 38_861_288, 10.59,
            "sw_in12k_ft_in1k", dict(qkv_bias=False, layer_scale_init=1e-6),
        ),
        (
            "vit_medium_patch16_gap_384", 39_025_128, 26.08,
            {"sw_in12k_ft_in1k": dict(crop_mode="squash")}, dict(qkv_bias=False, layer_scale_init=1e-6),
        ),
        ("vit_betwixt_patch16_gap_256", 60_372_840, 16.25, "", dict(qkv_bias=False, layer_scale_init=1e-6)),
        ("vit_base_patch16_gap_224", 86_566_120, 17.49, "", dict(crop_pct=0.9, num_heads=16)),
        ("vit_huge_patch16_gap_448", 631_668_480, 544.70, "in1k_ijepa", dict(crop_pct=1.0, **_IJEPA)),
        ("vit_huge_patch14_gap_224", 630_762_240, 166.73, "in1k_ijepa in22k_ijepa", dict(crop_pct=0.9, **_IJEPA)),
        ("vit_giant_patch16_gap_224", 1_011_368_576, 202.46, "in22k_ijepa", dict(crop_pct=0.9, **_IJEPA)),
    ),
    paper="2010.11929", class_token=False, global_pool="avg", fc_norm=False, crop_pct=0.95, **_INCEPTION,
)  # fmt: skip
_register(
    (
        ("vit_wee_patch16_reg1_gap_256", 13_422_568, 3.83, "sbb_in1k"),
        ("vit_little_patch16_reg1_gap_256", 22_515_048, 6.27, "sbb_in12k_ft_in1k sbb_in12k"),
        ("vit_little_patch16_reg4_gap_256", 22_516_008, 6.35, "sbb_in1k"),
        ("vit_medium_patch16_reg1_gap_256", 38_880_232, 10.63, "sbb_in1k"),
        ("vit_medium_patch16_reg4_gap_256", 38_881_768, 10.76, "sbb_in12k_ft_in1k sbb_in1k sbb_in12k"),
        (
            "vit_mediumd_patch16_reg4_gap_256", 64_109_032, 17.87,
            "sbb2_e200_in12k_ft_in1k sbb_in12k_ft_in1k sbb2_e200_in12k sbb_in12k",
        ),
        ("vit_mediumd_patch16_reg4_gap_384", 64_272_872, 43.67, "sbb2_e200_in12k_ft_in1k", dict(crop_pct=1.0)),
        ("vit_betwixt_patch16_reg1_gap_256", 60_396_520, 16.32, "sbb_in1k"),
        (
            "vit_betwixt_patch16_reg4_gap_256", 60_398_440, 16.52,
            "sbb2_e200_in12k_ft_in1k sbb_in12k_ft_in1k sbb_in1k sbb2_e200_in12k sbb_in12k",
        ),
        ("vit_betwixt_patch16_reg4_gap_384", 60_603_240, 39.71, "sbb2_e200_in12k_ft_in1k", dict(crop_pct=1.0)),
        ("vit_base_patch16_reg4_gap_256", 86_615_272, 23.50, "", dict(crop_pct=0.9, layer_scale_init=None)),
        (
            "vit_so150m_patch16_reg4_gap_256", 134_131_560, 36.75,
            "sbb_e250_in12k_ft_in1k sbb_e250_in12k", dict(**_SO150M),
        ),
        (
            "vit_so150m_patch16_reg4_gap_384", 134_418_280, 87.97,
            "sbb_e250_in12k_ft_in1k", dict(crop_pct=1.0, **_SO150M),
        ),
        (
            "vit_so150m_patch16_reg4_map_256", 141_481_064, 37.17,
            "", dict(crop_pct=0.9, **{**_SO150M, "global_pool": "map"}),
        ),
        (
            "vit_so150m2_patch16_reg1_gap_256", 136_059_560, 37.00,
            "sbb_e200_in12k_ft_in1k sbb_e200_in12k", dict(crop_pct=1.0, **_SO150M2),
        ),
        (
            "vit_so150m2_patch16_reg1_gap_384", 136_325_800, 89.53,
            "sbb_e200_in12k_ft_in1k", dict(crop_pct=1.0, **_SO150M2),
        ),
        (
            "vit_so150m2_patch16_reg1_gap_448", 136_498_856, 127.51,
            {"sbb_e200_in12k_ft_in1k": dict(crop_mode="squash")}, dict(crop_pct=1.0, **_SO150M2),
        ),
    ),
    paper="2309.16588", class_token=False, no_embed_class=True, global_pool="avg", layer_scale_init=1e-5, crop_pct=0.95,
    **_INCEPTION,
)  # fmt: skip
_register(
    (
        ("vit_base_patch32_siglip_256", 94_552_320, 5.75, "v2_webli", dict(act="gelu_tanh")),
        ("vit_base_patch16_siglip_224", 92_884_224, 17.73, "v2_webli webli"),
        ("vit_base_patch16_siglip_256", 92_930_304, 23.44, "v2_webli webli webli_i18n"),
        ("vit_base_patch16_siglip_384", 93_176_064, 56.12, "v2_webli webli"),
        ("vit_base_patch16_siglip_512", 93_520_128, 108.22, "v2_webli webli"),
        ("vit_large_patch16_siglip_256", 315_956_224, 81.34, "v2_webli webli"),
        ("vit_large_patch16_siglip_384", 316_283_904, 192.07, "v2_webli webli"),
        ("vit_large_patch16_siglip_512", 316_742_656, 364.00, "v2_webli", dict(act="gelu_tanh")),
        ("vit_giantopt_patch16_siglip_256", 1_163_168_256, 299.66, "v2_webli", dict(act="gelu_tanh")),
        ("vit_giantopt_patch16_siglip_384", 1_163_659_776, 696.85, "v2_webli", dict(act="gelu_tanh")),
        ("vit_so400m_patch16_siglip_256", 427_888_064, 110.31, "v2_webli webli_i18n", dict(act="gelu_tanh")),
        ("vit_so400m_patch16_siglip_384", 428_256_704, 259.65, "v2_webli", dict(act="gelu_tanh")),
        ("vit_so400m_patch16_siglip_512", 428_772_800, 490.13, "v2_webli", dict(act="gelu_tanh")),
        ("vit_so400m_patch14_siglip_224", 427_680_704, 110.26, "v2_webli webli"),
        ("vit_so400m_patch14_siglip_378", 428_225_600, 335.40, "v2_webli webli webli_ft_in1k"),
        ("vit_so400m_patch14_siglip_384", 428_225_600, 335.40, "webli", dict(drop_edge=True)),
    ),
    paper="2303.15343", class_token=False, global_pool="map", num_classes=0, crop_pct=0.9, **_INCEPTION,
)  # fmt: skip
_register(
    (
        ("vit_base_patch32_siglip_gap_256", 87_465_216, 5.67, "v2_webli", dict(act="gelu_tanh")),
        ("vit_base_patch16_siglip_gap_224", 85_797_120, 17.49, "v2_webli webli"),
        ("vit_base_patch16_siglip_gap_256", 85_843_200, 23.13, "v2_webli webli webli_i18n"),
        ("vit_base_patch16_siglip_gap_384", 86_088_960, 55.43, "v2_webli webli"),
        ("vit_base_patch16_siglip_gap_512", 86_433_024, 107.00, "v2_webli webli"),
        ("vit_large_patch16_siglip_gap_256", 303_361_024, 80.80, "v2_webli webli"),
        ("vit_large_patch16_siglip_gap_384", 303_688_704, 190.85, "v2_webli webli"),
        ("vit_large_patch16_siglip_gap_512", 304_147_456, 361.84, "v2_webli", dict(act="gelu_tanh")),
        ("vit_giantopt_patch16_siglip_gap_256", 1_134_838_272, 298.42, "v2_webli", dict(act="gelu_tanh")),
        ("vit_giantopt_patch16_siglip_gap_384", 1_135_329_792, 694.10, "v2_webli", dict(act="gelu_tanh")),
        ("vit_so400m_patch16_siglip_gap_256", 412_649_712, 109.62, "v2_webli webli_i18n", dict(act="gelu_tanh")),
        ("vit_so400m_patch16_siglip_gap_384", 413_018_352, 258.11, "v2_webli", dict(act="gelu_tanh")),
        ("vit_so400m_patch16_siglip_gap_512", 413_534_448, 487.40, "v2_webli", dict(act="gelu_tanh")),
        (
            "vit_so400m_patch14_siglip_gap_224", 412_442_352, 109.57,
            "v2_webli webli pali_mix pali_pt pali2_3b_pt pali2_10b_pt",
        ),
        (
            "vit_so400m_patch14_siglip_gap_378", 412_987_248, 333.46,
            {"v2_webli": {}, "webli": dict(crop_pct=1.0), "webli_ft_in1k": _TAGS["webli_ft_in1k"]},
        ),
        ("vit_so400m_patch14_siglip_gap_384", 412_987_248, 333.46, "webli", dict(crop_pct=1.0, drop_edge=True)),
        (
            "vit_so400m_patch14_siglip_gap_448", 413_327_088, 487.18,
            "pali_mix pali_pt pali_refcoco_seg pali_ocrvqa pali2_3b_pt pali2_10b_pt pali2_3b_docci pali2_10b_docci",
            dict(crop_pct=1.0),
        ),
        (
            "vit_so400m_patch14_siglip_gap_896", 416_866_032, 2731.49,
            "pali_pt pali_refcoco_seg pali_ocrvqa pali2_3b_pt pali2_10b_pt", dict(crop_pct=1.0),
        ),
    ),
    paper="2303.15343", class_token=False, global_pool="avg", fc_norm=False, num_classes=0, crop_pct=0.9,
    **_INCEPTION,
)  # fmt: skip
_register(
    (
        ("vit_small_patch14_dinov2", 22_056_192, 46.76, "lvd142m"),
        ("vit_small_patch14_reg4_dinov2", 22_057_344, 46.95, "lvd142m", dict(no_embed_class=True)),
        ("vit_base_patch14_dinov2", 86_579_712, 151.71, "lvd142m"),
        ("vit_base_patch14_reg4_dinov2", 86_582_016, 152.25, "lvd142m", dict(no_embed_class=True)),
        ("vit_large_patch14_dinov2", 304_367_616, 507.15, "lvd142m"),
        ("vit_large_patch14_reg4_dinov2", 304_370_688, 508.90, "lvd142m", dict(no_embed_class=True)),
        ("vit_giant_patch14_dinov2", 1_136_479_232, 1784.20, "lvd142m", dict(**_GIANT)),
        ("vit_giant_patch14_reg4_dinov2", 1_136_483_840, 1790.08, "lvd142m", dict(**_GIANT, no_embed_class=True)),
    ),
    paper="2304.07193", img_size=518, layer_scale_init=1e-5, num_classes=0, crop_pct=1.0, **_IMAGENET,
)  # fmt: skip
_register(
    (
        ("deit_tiny_distilled_patch16_224", 5_910_800, 1.27, "fb_in1k", dict(distilled=True)),
        ("deit_tiny_patch16_224", 5_717_416, 1.26, "fb_in1k"),
        ("deit_small_distilled_patch16_224", 22_436_432, 4.63, "fb_in1k", dict(distilled=True)),
        ("deit_small_patch16_224", 22_050_664, 4.61, "fb_in1k"),
        ("deit_base_distilled_patch16_224", 87_338_192, 17.68, "fb_in1k", dict(distilled=True)),
        ("deit_base_distilled_patch16_384", 87_630_032, 55.65, "fb_in1k", dict(crop_pct=1.0, distilled=True)),
        ("deit_base_patch16_224", 86_567_656, 17.58, "fb_in1k"),
        ("deit_base_patch16_384", 86_859_496, 55.54, "fb_in1k", dict(crop_pct=1.0)),
    ),
    paper="2012.12877", crop_pct=0.9, **_IMAGENET,
)  # fmt: skip
_register(
    (
        ("deit3_small_patch16_224", 22_059_496, 4.61, "fb_in1k fb_in22k_ft_in1k"),
        ("deit3_small_patch16_384", 22_205_416, 15.52, "fb_in1k fb_in22k_ft_in1k", dict(crop_pct=1.0)),
        ("deit3_medium_patch16_224", 38_849_512, 8.00, "fb_in1k fb_in22k_ft_in1k"),
        ("deit3_base_patch16_224", 86_585_320, 17.58, "fb_in1k fb_in22k_ft_in1k"),
        ("deit3_base_patch16_384", 86_877_160, 55.54, "fb_in1k fb_in22k_ft_in1k", dict(crop_pct=1.0)),
        ("deit3_large_patch16_224", 304_374_760, 61.60, "fb_in1k fb_in22k_ft_in1k"),
        ("deit3_large_patch16_384", 304_763_880, 191.21, "fb_in1k fb_in22k_ft_in1k", dict(crop_pct=1.0)),
        ("deit3_huge_patch14_224", 632_126_440, 167.40, "fb_in1k fb_in22k_ft_in1k"),
    ),
    paper="2204.07118", no_embed_class=True, layer_scale_init=1e-6, crop_pct=0.9, **_IMAGENET,
)  # fmt: skip
_register(
    (
        ("eva_large_patch14_196", 304_142_312, 61.57, "in22k_ft_in22k_in1k in22k_ft_in1k"),
        (
            "eva_large_patch14_336", 304_531_432, 191.10,
            {tag: dict(crop_mode="squash") for tag in ("in22k_ft_in22k_in1k", "in22k_ft_in1k")},
        ),
    ),
    paper="2211.07636", global_pool="avg", crop_pct=1.0, licence="mit", **_CLIP,
)  # fmt: skip
_WORDS = dict(num_classes=21_843)
_FLEXIBLE = {tag: {} for tag in ("1200ep_in1k", "600ep_in1k", "300ep_in1k")}
_WIDER = dict.fromkeys(("1000ep_in21k", "300ep_in21k", "patch16_in21k", "patch30_in21k"), _WORDS)
_register(
    (
        ("flexivit_small", 22_061_416, 5.35, _FLEXIBLE),
        ("flexivit_base", 86_589_160, 20.29, _FLEXIBLE | _WIDER),
        ("flexivit_large", 304_355_304, 70.99, _FLEXIBLE),
    ),
    paper="2212.08013", img_size=240, no_embed_class=True, crop_pct=0.95, **_INCEPTION,
)  # fmt: skip
_register(
    (("vit_base_patch16_rpn_224", 86_538_472, 17.49, "sw_in1k"),),
    paper="2111.09883", qkv_bias=False, class_token=False, global_pool="avg", norm_last=True, layer_scale_init=1e-5,
    crop_pct=0.9, **_INCEPTION,
)  # fmt: skip
_BEIT3 = {tag: {} for tag in ("in22k_ft_in1k", "indomain_in22k_ft_in1k")}
_BEIT3 |= {tag: dict(num_classes=0) for tag in ("pt", "indomain_pt")}
_register(
    (
        ("beit3_base_patch16_224", 86_659_816, 17.63, _BEIT3),
        ("beit3_large_patch16_224", 304_572_392, 61.72, _BEIT3),
        ("beit3_giant_patch14_224", 1_013_215_592, 267.56, "", dict(mlp_ratio=4.3637)),
        ("beit3_giant_patch14_336", 1_013_666_152, 621.52, "", dict(mlp_ratio=4.3637)),
    ),
    paper="2208.10442", global_pool="avg", attn_norm=True, mlp_norm=True, norm_epsilon=1e-5, crop_pct=1.0, **_IMAGENET,
)  # fmt: skip
_register(
    (("vit_intern300m_patch14_448", 304_012_288, 362.05, {"ogvl_dist": dict(licence="mit"), "ogvl_2pt5": {}}),),
    paper="2312.14238", layer_scale_init=0.1, final_norm=False, num_classes=0, crop_pct=1.0, **_IMAGENET,
)  # fmt: skip
_register(
    (  # multiply-adds as counted here
        ("vit_base_patch14_reg1_tipsv2", 86_314_752, 107.01, "webli"),
        ("vit_large_patch14_reg1_tipsv2", 304_014_336, 362.20, "webli"),
        ("vit_so400m_patch14_reg1_tipsv2", 413_391_600, 487.94, "webli"),
        ("vit_giant_patch14_reg1_tipsv2", 1_135_949_312, 1292.18, "webli", _GIANT),
    ),
    paper="2604.12012", img_size=448, no_embed_class=True, layer_scale_init=1.0, num_classes=0, crop_pct=1.0, **_UNIT,
)  # fmt: skip
