"""Rows of tables of variants: what a name says is not said again."""

import dataclasses
import re

from vision_jax.models.vit.model import VisionTransformer, ViTConfig
from vision_jax.registry import register

SIZES = {  # width, depth, heads, and the MLP's ratio where it is not 4
    "tiny": (192, 12, 3),
    "xsmall": (256, 10, 4),
    "wee": (256, 14, 4, 5.0),
    "little": (320, 14, 5, 5.6),
    "dwee": (256, 14, 4, 5.0),
    "pwee": (256, 16, 4, 5.0),
    "dpwee": (256, 16, 4, 5.0),
    "dlittle": (320, 14, 5, 5.6),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "so150m": (896, 18, 14, 2.572),
    "so150m2": (832, 21, 13, 34 / 13),
    "large": (1024, 24, 16),
    "intern300m": (1024, 24, 16),
    "so400m": (1152, 27, 16, 3.7362),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16, 48 / 11),
    "giantopt": (1536, 40, 16),
    "gigantic": (1664, 48, 16, 64 / 13),
}


def register_rows(rows, *, paper, model=VisionTransformer, config=ViTConfig, own=None, **shared):
    """Registers rows (name, parameters, GMACs as timm publishes them, tags, and what differs from `shared`).

    `own`: {tag: in what its weights differ}, for rows whose tags are words of a string.
    """
    config_fields = {field.name for field in dataclasses.fields(config)}
    for name, params, gmacs, tags, *fields in rows:
        given = {"licence": "apache-2.0", "paper": paper, **_said(name), **shared, **dict(*fields)}
        fields = {key: given.pop(key) for key in config_fields & given.keys()}
        tags = {tag: (own or {}).get(tag, {}) for tag in tags.split() or [""]} if isinstance(tags, str) else tags
        register(name, model, config(**fields), params=params, gmacs=gmacs, tags=tags, **given)


def _said(name):
    """The config fields that a name tells: size, patches, registers, image."""
    said = next(size for part in name.split("_") if (size := SIZES.get(part)))
    sizes = dict(zip(("embed_dim", "depth", "num_heads", "mlp_ratio"), said, strict=False))
    number = {key: int(n) for key, n in re.findall(r"_(patch|reg|)(\d+)(?=_|$)", name)}
    keys = {"patch": "patch_size", "reg": "reg_tokens", "": "img_size"}
    return {**sizes, **{keys[key]: n for key, n in number.items()}}
