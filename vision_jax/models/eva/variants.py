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
