"""CLIP's image towers (Radford et al., 2021, arXiv:2103.00020), and classifiers that grew from them.

Two norms more than a ViT's: one before the first block, and epsilons of 1e-5. OpenAI's models, and those of others who
followed their code, have QuickGELU; such weights go with the names that say so, and are off a little without it. Where
the head is not a classifier it is the projection to the space that images and texts share; it has no bias, so timm's
files, as these, hold one of zeros. Files of transformers (openai/clip-vit-base-patch32 on the hub) are read without it:
num_classes=0 and `load_weights(..., head="skip")`.
"""

from typing import ClassVar

from vision_jax.models.vit.model import VisionTransformer
from vision_jax.models.vit.rows import register_rows
from vision_jax.registry import CLIP_MEAN, CLIP_STD, INCEPTION_MEAN, INCEPTION_STD

_LICENCES = {  # by how a tag begins, where it is not the Apache licence
    "laion400m": "mit",
    "tinyclip": "mit",
    "metaclip": "cc-by-nc-4.0",
    "dfn": "apple-ascl",
    "apple": "apple-amlr",
}
_FINETUNED = {"in1k": 1000, "in12k": 11_821}  # classes, by how a tag ends
_CLIP, _INCEPTION = dict(mean=CLIP_MEAN, std=CLIP_STD), dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)
_HF = (
    (r"^cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^norm_pre\.", "vision_model.pre_layrnorm."),
    (r"^norm\.", "vision_model.post_layernorm."),
    (r"^blocks\.", "vision_model.encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", tuple(f".self_attn.{part}_proj." for part in "qkv")),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"^head\.", "visual_projection."),
)


class CLIPVisionTransformer(VisionTransformer):
    """Images [B, H, W, C] -> logits, or their places in the joint space, [B, num_classes]."""

    torch_names: ClassVar = {"timm": ()}
    flat_names: ClassVar = {"hf": _HF, "hf_modules": (*_HF, (r"^vision_model\.", ""))}
    linen_names: ClassVar = {}
    torch_ignore = (r"^(text_model|text_projection|logit_scale)\b", r"\.position_ids$")  # the rest of CLIP, a buffer


def _register(rows, *, paper="2103.00020", **shared):
    """Registers rows (name, parameters, GMACs, channels of the joint space, groups of tags, fields of their own).

    A group is (tags, crop_pct) or (tags, crop_pct, crop_mode); the first tag of all is the default one.
    """
    for name, params, gmacs, width, groups, *fields in rows:
        tags = {tag: _weights(name, tag, width, *crop) for words, *crop in groups for tag in words.split()}
        fields = {"num_classes": next(iter(tags.values()))["num_classes"], **dict(*fields)}
        fields |= dict(pre_norm=True, norm_epsilon=1e-5, **shared)
        register_rows([(name, params, gmacs, tags, fields)], model=CLIPVisionTransformer, paper=paper)


def _weights(name, tag, width, crop_pct, crop_mode="center"):
    """The fields in which one of the published weights differs."""
    licence = next((licence for start, licence in _LICENCES.items() if tag.startswith(start)), "apache-2.0")
    inception = "large" in name and tag.startswith("laion2b")
    return dict(
        hub=f"timm/{name.replace('_quickgelu', '')}.{tag}", num_classes=_FINETUNED.get(tag.split("_")[-1], width),
        crop_pct=crop_pct, crop_mode=crop_mode, licence=licence, **(_INCEPTION if inception else _CLIP),
    )  # fmt: skip


_FROM_IN12K = "laion2b_ft_in12k_in1k openai_ft_in12k_in1k"
_register(
    (
        (
            "vit_base_patch32_clip_224", 88_225_000, 4.41, 512,
            (
                ("laion2b_ft_in12k_in1k laion2b_ft_in1k openai_ft_in1k laion2b laion400m_e32 openai", 0.9),
                ("datacompxl metaclip_2pt5b metaclip_400m", 1.0),
            ),
        ),
        ("vit_base_patch32_clip_256", 87_861_248, 5.76, 512, (("datacompxl", 1.0),)),
        (
            "vit_base_patch32_clip_384", 88_297_960, 13.06, 512,
            (("laion2b_ft_in12k_in1k", 1.0), ("openai_ft_in12k_in1k", 0.95, "squash")),
        ),
        ("vit_base_patch32_clip_448", 88_337_896, 17.93, 512, (("laion2b_ft_in12k_in1k", 1.0),)),
        (
            "vit_base_patch16_clip_224", 86_568_424, 17.58, 512,
            (
                (_FROM_IN12K, 0.95),
                ("openai_ft_in1k laion2b_ft_in12k openai_ft_in12k openai", 0.9),
                ("laion2b_ft_in1k laion2b laion400m_e32 datacompxl dfn2b metaclip_2pt5b metaclip_400m", 1.0),
            ),
        ),
        (
            "vit_base_patch16_clip_384", 86_860_264, 55.54, 512,
            (
                ("laion2b_ft_in12k_in1k laion2b_ft_in1k openai_ft_in1k", 1.0, "squash"),
                ("openai_ft_in12k_in1k", 0.95, "squash"),
            ),
        ),
        (
            "vit_base_patch16_plus_clip_240", 117_214_464, 27.41, 640,
            (("laion400m_e32", 1.0),), dict(embed_dim=896, num_heads=14),
        ),
        (
            "vit_large_patch14_clip_224", 304_204_776, 81.08, 768,
            (
                (f"{_FROM_IN12K} laion2b_ft_in1k openai_ft_in1k laion2b_ft_in12k openai_ft_in12k", 1.0),
                ("laion2b laion400m_e32 datacompxl dfn2b_s39b dfn2b metaclip_2pt5b metaclip_400m openai", 1.0),
                ("apple_mclip2_dfndr2b", 1.0),
            ),
        ),
        (
            "vit_large_patch14_clip_336", 304_532_456, 191.11, 768,
            ((f"{_FROM_IN12K} laion2b_ft_in1k", 1.0, "squash"), ("openai", 1.0)),
        ),
        (
            "vit_huge_patch14_clip_224", 632_047_080, 167.40, 1024,
            (
                ("laion2b_ft_in12k_in1k laion2b_ft_in1k laion2b_ft_in12k laion2b", 1.0),
                ("dfn5b metaclip2_worldwide metaclip_2pt5b metaclip_altogether", 1.0),
            ),
        ),
        ("vit_huge_patch14_clip_336", 632_456_680, 390.97, 1024, (("laion2b_ft_in12k_in1k", 1.0, "squash"),)),
        (
            "vit_huge_patch14_clip_378", 632_683_264, 503.79, 1024,
            (("dfn5b", 1.0), ("metaclip2_worldwide", 1.0, "squash")),
        ),
        ("vit_giant_patch14_clip_224", 1_012_646_656, 267.18, 1024, (("laion2b", 1.0),)),
        (
            "vit_gigantic_patch14_clip_224", 1_844_908_544, 483.96, 1280,
            (("laion2b metaclip2_worldwide metaclip_2pt5b", 1.0),),
        ),
        ("vit_gigantic_patch14_clip_378", 1_845_695_616, 1429.82, 1280, (("metaclip2_worldwide", 1.0, "squash"),)),
    )
)  # fmt: skip
_META = "metaclip_2pt5b metaclip_400m"
_register(
    (
        (
            "vit_base_patch32_clip_quickgelu_224", 87_849_728, 4.41, 512,
            (("laion400m_e32 openai", 0.9), (_META, 1.0)),
        ),
        ("vit_base_patch16_clip_quickgelu_224", 86_193_152, 17.58, 512, ((_META, 1.0), ("openai", 0.9))),
        ("vit_large_patch14_clip_quickgelu_224", 303_966_976, 81.08, 768, ((f"dfn2b {_META} openai", 1.0),)),
        ("vit_large_patch14_clip_quickgelu_336", 304_294_656, 191.11, 768, (("openai", 1.0),)),
        (
            "vit_huge_patch14_clip_quickgelu_224", 632_077_824, 167.40, 1024,
            (("dfn5b metaclip2_worldwide metaclip_2pt5b", 1.0),),
        ),
        ("vit_huge_patch14_clip_quickgelu_378", 632_683_264, 503.79, 1024, (("dfn5b", 1.0),)),
        ("vit_gigantic_patch14_clip_quickgelu_224", 1_844_908_544, 483.96, 1280, (("metaclip_2pt5b", 1.0),)),
    ),
    act="quick_gelu",
)  # fmt: skip
_register(
    (
        ("vit_xsmall_patch16_clip_224", 8_277_504, 1.79, 512, (("tinyclip_yfcc15m", 0.9),)),
        ("vit_medium_patch32_clip_224", 39_692_288, 2.00, 512, (("tinyclip_laion400m", 0.9),)),
        ("vit_medium_patch16_clip_224", 38_587_904, 8.00, 512, (("tinyclip_yfcc15m", 0.9),)),
        ("vit_betwixt_patch32_clip_224", 61_411_712, 3.09, 512, (("tinyclip_laion400m", 0.9),)),
    ),
    paper="2309.12314",
)  # fmt: skip
