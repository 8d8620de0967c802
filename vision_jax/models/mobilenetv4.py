"""MobileNetV4: Universal Models for the Mobile Ecosystem (Qin et al., 2024, arXiv:2404.10518).

Universal inverted bottlenecks, whose depthwise convolutions stand before the expansion, in the middle, at both places
or nowhere: the search chooses. The hybrid networks attend in between, all heads to one head of keys and values.
Official repository: tensorflow/models (official/vision/modeling/backbones/mobilenet.py); compared here with timm's,
whose `aa` and `blur` variants halve maps by means and blurs.
"""

from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register


def _stage(dim, *rows):
    """A stage, the map halved at its start, of (first kernel, middle kernel, expansion[, repeats]), or attention."""
    out = []
    for i, row in enumerate(rows):
        if isinstance(row, Blocks):
            out.append(row._replace(dim=dim))
        else:
            start, kernel_size, expansion, repeats = (*row, 1)[:4]
            out.append(Blocks("uib", repeats, kernel_size, 1 if i else 2, expansion, dim, start=start))
    return tuple(out)


def _conv(kernel_size, stride, dim):
    return Blocks("conv", 1, kernel_size, stride, 1, dim, skip=False)


def _attention(num_heads, head_dim, kv_stride=1):
    return Blocks("mqa", 1, 3, 1, 1, 0, num_heads=num_heads, head_dim=head_dim, kv_stride=kv_stride)


_FUSED, _LAST = (Blocks("fused", 1, 3, 2, 4, 48),), (_conv(1, 1, 960),)
_SMALL = (
    (_conv(3, 2, 32), _conv(1, 1, 32)),
    (_conv(3, 2, 96), _conv(1, 1, 64)),
    _stage(96, (5, 5, 3), (0, 3, 2, 4), (3, 0, 4)),
    _stage(128, (3, 3, 6), (5, 5, 4), (0, 5, 4), (0, 5, 3), (0, 3, 4, 2)),
    _LAST,
)
_MEDIUM = (
    _FUSED,
    _stage(80, (3, 5, 4), (3, 3, 2)),
    _stage(160, (3, 5, 6), (3, 3, 4, 2), (3, 5, 4), (3, 3, 4), (3, 0, 4), (0, 0, 2), (3, 0, 4)),
    _stage(
        256, (5, 5, 6), (5, 5, 4), (3, 5, 4, 2), (0, 0, 4), (3, 0, 4), (3, 5, 2), (5, 5, 4), (0, 0, 4, 2), (5, 0, 2)
    ),
    _LAST,
)  # fmt: skip
_LARGE = (
    _FUSED,
    _stage(96, (3, 5, 4), (3, 3, 4)),
    _stage(192, (3, 5, 4), (3, 3, 4, 3), (3, 5, 4), (5, 3, 4, 5), (3, 0, 4)),
    _stage(512, (5, 5, 4, 4), (5, 0, 4), (5, 3, 4), (5, 0, 4, 2), (5, 3, 4), (5, 5, 4), (5, 0, 4, 3)),
    _LAST,
)
_a, _b = _attention(4, 64, 2), _attention(4, 64)
_HYBRID_MEDIUM = (
    *_MEDIUM[:2],
    _stage(
        160, (3, 5, 6), (0, 0, 2), (3, 3, 4), (3, 5, 4), _a, (3, 3, 4), _a, (3, 0, 4), _a, (3, 3, 4), _a, (3, 0, 4)
    ),
    _stage(
        256, (5, 5, 6), (5, 5, 4), (3, 5, 4, 2), (0, 0, 2), (3, 5, 2), (0, 0, 2), (0, 0, 4), _b, (3, 0, 4), _b,
        (5, 5, 4), _b, (5, 0, 4), _b, (5, 0, 4),
    ),
    _LAST,
)  # fmt: skip
_c, _d = _attention(8, 48, 2), _attention(8, 64)
_HYBRID_LARGE = (
    *_LARGE[:2],
    _stage(
        192, (3, 5, 4), (3, 3, 4, 3), (3, 5, 4), (5, 3, 4, 2), _c, (5, 3, 4), _c, (5, 3, 4), _c, (5, 3, 4), _c,
        (3, 0, 4),
    ),
    _stage(
        512, (5, 5, 4, 4), (5, 0, 4), (5, 3, 4), (5, 0, 4, 2), (5, 3, 4), (5, 5, 4), _d, (5, 0, 4), _d, (5, 0, 4), _d,
        (5, 0, 4), _d, (5, 0, 4),
    ),
    _LAST,
)  # fmt: skip


class MobileNetV4(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    inert = (r"attn\.key\.norm\.(mean|bias)$",)  # what is added to every key adds one number to all scores of a query


def _mobilenetv4(name, stages, params, gmacs, img_size, tags=("",), *, width=1.0, stem_dim=32, crop_pct=0.95, **fields):
    if isinstance(tags, str):  # the side of the images follows the r
        tags = {tag: dict(img_size=int(tag.partition("_r")[2][:3])) for tag in tags.split()}
    for tag in tags:
        if tag.endswith("in12k"):
            tags[tag]["num_classes"] = 11_821
    config = InvertedResidualConfig(
        stages=scaled(stages, width), stem_dim=stem_dim, pooled_head=True, head_bias=False, head_norm=True,
        img_size=img_size, **fields,
    )  # fmt: skip
    register(
        f"mobilenetv4_{name}", MobileNetV4, config, params=params, gmacs=gmacs, paper="2404.10518",
        licence="apache-2.0", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_INCEPTION = dict(mean=INCEPTION_MEAN, std=INCEPTION_STD)
_SMALL_TAGS = {
    "e2400_r224_in1k": {},
    "e1200_r224_in1k": {},
    "e3600_r256_in1k": dict(_INCEPTION, img_size=256, crop_pct=0.95),
}
_MEDIUM_TAGS = {
    "e500_r256_in1k": {},
    "e500_r224_in1k": dict(img_size=224),
    "e250_r384_in12k_ft_in1k": dict(img_size=384),
    **{f"{tag}_r384_in12k": dict(img_size=384, crop_pct=1.0) for tag in ("e180_ad", "e180", "e250")},
}
_AA_TAGS = "e230_r448_in12k_ft_in1k e230_r384_in12k e230_r384_in12k_ft_in1k e600_r384_in1k"
_HYBRID = dict(layer_scale=1e-5)
_HYBRID_TAGS = "e200_r256_in12k_ft_in1k e200_r256_in12k e500_r224_in1k ix_e550_r256_in1k ix_e550_r384_in1k"

# multiply-adds as counted at these sizes
_mobilenetv4("conv_small_035", _SMALL, 1_905_384, 0.05, 224, width=0.35, crop_pct=0.875)
_mobilenetv4(
    "conv_small_050", _SMALL, 2_238_952, 0.06, 224, {"e3000_r224_in1k": _INCEPTION}, width=0.5, crop_pct=0.875
)  # fmt: skip
_mobilenetv4("conv_small", _SMALL, 3_774_024, 0.19, 224, _SMALL_TAGS, crop_pct=0.875)
_mobilenetv4("conv_medium", _MEDIUM, 9_715_512, 1.1, 256, _MEDIUM_TAGS)
_mobilenetv4("conv_large", _LARGE, 32_590_864, 6.4, 384, "e600_r384_in1k e500_r256_in1k", stem_dim=24)
_mobilenetv4("conv_aa_medium", _MEDIUM, 9_715_512, 1.56, 256, shrink="avg")
_mobilenetv4("conv_blur_medium", _MEDIUM, 9_715_512, 1.2, 224, "e500_r224_in1k", shrink="blur")
_mobilenetv4("conv_aa_large", _LARGE, 32_590_864, 9.54, 448, _AA_TAGS, stem_dim=24, shrink="avg")
_mobilenetv4("hybrid_medium", _HYBRID_MEDIUM, 11_074_648, 1.3, 256, _HYBRID_TAGS, **_HYBRID)
_mobilenetv4("hybrid_medium_075", _HYBRID_MEDIUM, 7_313_528, 0.65, 224, width=0.75, **_HYBRID)
_large = dict(_HYBRID, stem_dim=24, act="gelu")
_mobilenetv4(
    "hybrid_large", _HYBRID_LARGE, 37_764_624, 7.71, 384, "ix_e600_r384_in1k e600_r384_in1k", **_large
)  # fmt: skip
_mobilenetv4("hybrid_large_075", _HYBRID_LARGE, 22_754_984, 2.04, 256, width=0.75, **_large)
