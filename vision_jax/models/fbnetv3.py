"""FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining (Dai et al., 2021, arXiv:2006.02049).

The search chooses the network and how it is trained together, led by a predictor of the accuracy. What it found has
MobileNetV3's blocks and its last layer after the pooling. Official repository: facebookresearch/mobile-vision; compared
here with timm's, whose activation is the hard swish throughout.
"""

from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals
from vision_jax.registry import register

SE = 0.25


def _stage(dim, *rows, se=0.0, stride=2):
    """Rows of (repeats, kernel size, expansion[, channels]); the first strides."""
    rows = [(*row, dim)[:4] for row in rows]
    return tuple(
        Blocks("mbconv", repeats, kernel_size, 1 if i else stride, expansion, out, se)
        for i, (repeats, kernel_size, expansion, out) in enumerate(rows)
    )


def _ends(repeats, dim, last, stages):
    separable = (Blocks("separable", repeats, 3, 1, 1, dim),)
    return (separable, *stages, (Blocks("conv", 1, 1, 1, 1, last, skip=False),))


_B = _ends(
    2, 16, 1344,
    (
        _stage(24, (1, 5, 4), (3, 5, 2)),
        _stage(40, (1, 5, 5), (4, 5, 3), se=SE),
        _stage(72, (1, 5, 5), (4, 3, 3)),
        _stage(120, (1, 3, 5), (5, 5, 3), se=SE, stride=1),
        _stage(184, (1, 3, 6), (5, 5, 4), (1, 5, 6, 224), se=SE),
    ),
)  # fmt: skip
_D = _ends(
    2, 16, 1440,
    (
        _stage(24, (1, 3, 5), (5, 3, 2)),
        _stage(40, (1, 5, 4), (4, 3, 3), se=SE),
        _stage(72, (1, 3, 5), (4, 3, 3)),
        _stage(128, (1, 3, 5), (6, 5, 3), se=SE, stride=1),
        _stage(208, (1, 3, 6), (5, 5, 5), (1, 5, 6, 240), se=SE),
    ),
)  # fmt: skip
_G = _ends(
    3, 24, 1728,
    (
        _stage(40, (1, 5, 4), (4, 5, 2)),
        _stage(56, (1, 5, 4), (4, 5, 3), se=SE),
        _stage(104, (1, 5, 5), (4, 3, 3)),
        _stage(160, (1, 3, 5), (8, 5, 3), se=SE, stride=1),
        _stage(264, (1, 3, 6), (6, 5, 5), (2, 5, 6, 288), se=SE),
    ),
)  # fmt: skip


class FBNetV3(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _fbnetv3(size, stages, stem_dim, params, gmacs, img_size=224):
    config = InvertedResidualConfig(
        stages=stages, stem_dim=stem_dim, head_dim=1984, pooled_head=True, head_bias=False, act="hard_swish",
        se_gate="hard_sigmoid", se_divisor=8, se_limit=0.95, img_size=img_size,
    )  # fmt: skip
    register(
        f"fbnetv3_{size}", FBNetV3, config, params=params, gmacs=gmacs, paper="2006.02049", licence="apache-2.0",
        tags=("ra2_in1k",), crop_pct=0.95, interpolation="bilinear",
    )  # fmt: skip


_fbnetv3("b", _B, 16, 8_598_464, 0.41)
_fbnetv3("d", _D, 24, 10_306_272, 0.50)
_fbnetv3("g", _G, 32, 16_623_888, 1.25, img_size=240)
