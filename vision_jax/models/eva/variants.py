"""Every published variant: what its name says, what it does not, and its weights."""

import dataclasses
import re

from vision_jax.models.eva.model import Eva, EvaConfig
from vision_jax.registry import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    register,
)

_SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 20),
    "giant": (1408, 40, 16),
    "gigantic": (1536, 50, 16),
    "enormous": (1792, 64, 16),
    "7b": (4096, 40, 32),
}
_CLIP = dict(mean=CLIP_MEAN, std=CLIP_STD)
_IMAGENET = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
_INCEPTION = dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)


def _register(rows, *, paper, **shared):
    """Registers rows (name, parameters, GMACs as timm publishes them, tags, and what differs from `shared`)."""
    config_fields = {field.name for field in dataclasses.fields(EvaConfig)}
    for name, params, gmacs, tags, *own in rows:
        given = {**_said(name), **shared, **dict(*own)}
        fields = {key: given.pop(key) for key in config_fields & given.keys()}
        tags = {tag: {} for tag in tags.split()} if isinstance(tags, str) else tags
        register(name, Eva, EvaConfig(**fields), params=params, gmacs=gmacs, paper=paper, tags=tags, **given)


def _said(name):
    """The config fields that a name tells: size, patches, registers, image."""
    sizes = next(size for part in name.split("_") if (size := _SIZES.get(part)))
    number = {key: int(n) for key, n in re.findall(r"_(patch|reg|)(\d+)(?=_|$)", name)}
    keys = {"patch": "patch_size", "reg": "reg_tokens", "": "img_size"}
    fields = dict(zip(("embed_dim", "depth", "num_heads"), sizes, strict=True))
    return {**fields, **{keys[key]: n for key, n in number.items()}}


_SQUASHED = dict(crop_mode="squash")
_MERGED = dict(**_SQUASHED, **_IMAGENET)
_register(
    (
        ("eva_giant_patch14_224", 1_012_555_112, 267.18, "clip_ft_in1k"),
        (
            "eva_giant_patch14_336", 1_013_005_672, 620.64,
            {"clip_ft_in1k": _SQUASHED, "m30m_ft_in22k_in1k": _MERGED}, dict(crop_pct=1.0),
        ),
        (
            "eva_giant_patch14_560", 1_014_447_464, 1906.76, {"m30m_ft_in22k_in1k": _MERGED},
            dict(crop_pct=1.0),
        ),
        (
            "eva_giant_patch14_clip_224", 1_012_588_928, 267.18, "laion400m merged2b",
            dict(num_classes=1024, global_pool="token"),
        ),
    ),
    paper="2211.07636", mlp_ratio=6144 / 1408, crop_pct=0.9, licence="mit", **_CLIP,
)  # fmt: skip

_ROTARY = dict(rotary="index", rotary_reference=16)
_NORMS = dict(mlp_norm=True)
_WORDS = dict(num_classes=21_841, **_SQUASHED)
_HEADLESS = dict(num_classes=0)
_FINETUNED = {"ft_in22k_in1k": _SQUASHED, "ft_in22k": _WORDS, "ft_in1k": {}}
_IN22K = {f"mim_in22k_{tag}": own for tag, own in _FINETUNED.items()}
_M38M = {f"mim_m38m_{tag}": own for tag, own in _FINETUNED.items()}
_CLIPPED = dict(mlp_norm=True, attn_norm=True, global_pool="token")
_register(
    (
        ("eva02_tiny_patch14_224", 5_502_144, 1.70, "mim_in22k", _HEADLESS),
        ("eva02_tiny_patch14_336", 5_756_584, 4.68, "mim_in22k_ft_in1k", dict(crop_pct=1.0)),
        ("eva02_small_patch14_224", 21_621_120, 6.14, "mim_in22k", _HEADLESS),
        ("eva02_small_patch14_336", 22_129_000, 15.48, "mim_in22k_ft_in1k", dict(crop_pct=1.0)),
        ("eva02_base_patch14_224", 85_758_720, 23.22, "mim_in22k", dict(**_HEADLESS, **_NORMS)),
        ("eva02_base_patch14_448", 87_117_544, 107.11, _IN22K, dict(crop_pct=1.0, **_NORMS)),
        ("eva02_large_patch14_224", 303_268_800, 81.15, "mim_in22k mim_m38m", dict(**_HEADLESS, **_NORMS)),
        ("eva02_large_patch14_448", 305_080_232, 362.33, _IN22K | _M38M, dict(crop_pct=1.0, **_NORMS)),
        ("eva02_base_patch16_clip_224", 86_263_040, 17.62, "merged2b",
         dict(num_classes=512, **_CLIPPED)),
        ("eva02_large_patch14_clip_224", 304_105_152, 81.18, "merged2b", dict(num_classes=768, **_CLIPPED)),
        ("eva02_large_patch14_clip_336", 304_432_832, 191.34, "merged2b",
         dict(num_classes=768, crop_pct=1.0, **_CLIPPED)),
        ("eva02_enormous_patch14_clip_224", 4_350_556_928, 1132.46, "laion2b laion2b_plus",
         dict(num_classes=1024, mlp="mlp", mlp_ratio=15360 / 1792, rotary=None, norm_last=True, global_pool="token")),
    ),
    paper="2303.11331", mlp="swiglu", mlp_ratio=8 / 3, crop_pct=0.9, licence="mit", **_ROTARY, **_CLIP,
)  # fmt: skip

_SBB = dict(rotary="index", rotary_reference=16)
_register(
    (
        ("vit_medium_patch16_rope_reg1_gap_256", 38_743_016, 10.63, "sbb_in1k"),
        ("vit_mediumd_patch16_rope_reg1_gap_256", 63_945_704, 17.65, "sbb_in1k", dict(qkv_bias=False)),
        ("vit_betwixt_patch16_rope_reg4_gap_256", 60_226_920, 16.52, "sbb_in1k", _CLIP),
        ("vit_base_patch16_rope_reg1_gap_256", 86_425_576, 23.22, "sbb_in1k"),
    ),
    paper="2309.16588", class_token=False, position="none", layer_scale_init=1e-5, crop_pct=0.95, licence="mit",
    **_SBB, **_INCEPTION,
)  # fmt: skip

_NAVER = dict(rotary="index", rotary_temperature=100.0, rotary_columns_first=True)
_MIXED = dict(rotary="mixed", rotary_temperature=10.0, rotary_columns_first=False)
_APE = dict(_MIXED, position="learned")
_register(
    (
        ("vit_small_patch16_rope_224", 21_984_232, 4.61, "naver_in1k"),
        ("vit_small_patch16_rope_ape_224", 22_059_496, 4.61, "naver_in1k", dict(position="learned")),
        ("vit_base_patch16_rope_224", 86_434_792, 17.58, "naver_in1k"),
        ("vit_base_patch16_rope_ape_224", 86_585_320, 17.58, "naver_in1k", dict(position="learned")),
        ("vit_large_patch16_rope_224", 304_174_056, 61.60, "naver_in1k"),
        ("vit_large_patch16_rope_ape_224", 304_374_760, 61.60, "naver_in1k", dict(position="learned")),
        ("vit_small_patch16_rope_mixed_224", 21_988_840, 4.61, "naver_in1k", _MIXED),
        ("vit_small_patch16_rope_mixed_ape_224", 22_064_104, 4.61, "naver_in1k", _APE),
        ("vit_base_patch16_rope_mixed_224", 86_444_008, 17.58, "naver_in1k", _MIXED),
        ("vit_base_patch16_rope_mixed_ape_224", 86_594_536, 17.58, "naver_in1k", _APE),
        ("vit_large_patch16_rope_mixed_224", 304_198_632, 61.60, "naver_in1k", _MIXED),
        ("vit_large_patch16_rope_mixed_ape_224", 304_399_336, 61.60, "naver_in1k", _APE),
    ),
    paper="2403.13298", position="none", no_embed_class=True, global_pool="token", key_bias=True, layer_scale_init=1e-5,
    crop_pct=0.9, licence="apache-2.0", **_NAVER, **_IMAGENET,
)  # fmt: skip

_DINO = dict(
    img_size=256, reg_tokens=4, position="none", rotary="centred", rotary_temperature=100.0, layer_scale_init=1e-5,
    fc_norm=False, norm_epsilon=1e-5, num_classes=0, crop_pct=1.0, **_IMAGENET,
)  # fmt: skip
_WEB, _BARE, _GATED = "lvd1689m", dict(qkv_bias=False), dict(mlp="swiglu")
_EUPE = {_WEB: {}, "eupe_lvd1689m": dict(licence="fair-noncommercial-research-license")}
_SATELLITE = {_WEB: {}, "sat493m": dict(mean=(0.430, 0.411, 0.296), std=(0.213, 0.156, 0.143))}
_register(
    (
        ("vit_tiny_patch16_dinov3_qkvb", 5_489_664, 1.74, {"eupe_lvd1689m": _EUPE["eupe_lvd1689m"]}),
        ("vit_small_patch16_dinov3", 21_586_944, 6.26, _WEB, _BARE),
        ("vit_small_patch16_dinov3_qkvb", 21_596_160, 6.26, _EUPE),
        ("vit_small_plus_patch16_dinov3", 28_683_264, 8.11, _WEB, _BARE | _GATED),
        ("vit_small_plus_patch16_dinov3_qkvb", 28_692_480, 8.11, _WEB, _GATED),
        ("vit_base_patch16_dinov3", 85_641_216, 23.60, _WEB, _BARE),
        ("vit_base_patch16_dinov3_qkvb", 85_659_648, 23.60, _EUPE),
        ("vit_large_patch16_dinov3", 303_079_424, 82.43, _SATELLITE, _BARE),
        ("vit_large_patch16_dinov3_qkvb", 303_128_576, 82.43, _SATELLITE),
        ("vit_huge_plus_patch16_dinov3", 840_509_440, 224.88, _WEB, _BARE | _GATED),
        ("vit_huge_plus_patch16_dinov3_qkvb", 840_591_360, 224.88, _WEB, _GATED),
        ("vit_7b_patch16_dinov3", 6_716_030_976, 1775.10, _SATELLITE, dict(**_BARE, **_GATED, mlp_ratio=2.0)),
    ),
    paper="2508.10104", licence="dinov3-license", **_DINO,
)  # fmt: skip
_LINGBOT = dict(img_size=512, global_pool="token", crop_mode="squash", interpolation="bilinear")
_GIANT = dict(embed_dim=1536, depth=40, num_heads=24, mlp_ratio=8 / 3, **_BARE, **_GATED)
for size, params, gmacs, fields in (  # multiply-adds as counted here, as those of the tiny one above
    ("small", 21_596_160, 31.91, {}),
    ("base", 85_659_648, 107.52, {}),
    ("large", 303_128_576, 363.60, {}),
    ("giant", 1_134_473_216, 1296.62, _GIANT),
):
    name = f"vit_{size}_patch16_lingbot"
    row = (name, params, gmacs, {"robbyant": dict(hub=f"belfner/{name}.robbyant")}, fields)
    _register((row,), paper="2607.05247", licence="apache-2.0", **{**_DINO, **_LINGBOT})

_PE = dict(
    pre_norm=True, key_bias=True, rotary="index", rotary_columns_first=True, rotary_offset=1.0, norm_epsilon=1e-5,
    crop_pct=1.0, licence="apache-2.0", **_INCEPTION,
)  # fmt: skip
_WIDE = dict(class_token=False, rotary_offset=0.0, mlp_ratio=8960 / 1536)
_SCALED = dict(layer_scale_init=0.1)
_register(
    (
        ("vit_pe_core_tiny_patch16_384", 6_141_056, 4.74, "fb", dict(num_classes=512)),
        ("vit_pe_core_small_patch16_384", 23_783_168, 15.69, "fb", dict(num_classes=512)),
        ("vit_pe_core_base_patch16_224", 93_673_984, 17.82, "fb", dict(rotary_reference=14)),
        ("vit_pe_core_large_patch14_336", 317_152_256, 192.33, "fb"),
        ("vit_pe_core_gigantic_patch14_448", 1_882_033_920, 2060.12, "fb",
         dict(num_classes=1280, rotary_reference=32, **_WIDE)),
    ),
    paper="2504.13181", num_classes=1024, global_pool="map", pool_heads=8, pool_mlp_ratio=4.0, rotary_reference=24,
    **_PE,
)  # fmt: skip
_register(
    (
        ("vit_pe_lang_large_patch14_448", 291_415_040, 346.99, "fb fb_tiling", dict(depth=23, **_SCALED)),
        ("vit_pe_lang_gigantic_patch14_448", 1_740_922_624, 1931.99, "fb fb_tiling",
         dict(depth=47, **_WIDE, **_SCALED)),
        ("vit_pe_spatial_tiny_patch16_512", 5_683_200, 10.46, "fb"),
        ("vit_pe_spatial_small_patch16_512", 21_983_232, 31.80, "fb"),
        ("vit_pe_spatial_base_patch16_512", 86_433_792, 107.13, "fb"),
        ("vit_pe_spatial_large_patch14_448", 303_964_160, 362.05, "fb"),
        ("vit_pe_spatial_gigantic_patch14_448", 1_851_887_104, 2055.25, "fb", dict(**_WIDE, **_SCALED)),
    ),
    paper="2504.13181", num_classes=0, fc_norm=False, final_norm=False, rotary_reference=32, **_PE,
)  # fmt: skip
