"""TinyNet: Model Rubik's Cube: Twisting Resolution, Depth and Width for TinyNets (Han et al., 2020, arXiv:2010.14819).

EfficientNet-B0 made smaller: at a given number of multiply-adds resolution and depth matter more than width, so they
shrink less, by a formula fitted to small networks. Official repository: huawei-noah/Efficient-AI-Backbones
(tinynet_pytorch); compared here with timm's.
"""

from vision_jax.models.inverted_residuals import B0, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import register


class TinyNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _tinynet(size, width, depth, img_size, params, gmacs):
    stages = scaled(B0, width, depth, rounding=round)
    register(
        f"tinynet_{size}", TinyNet, InvertedResidualConfig(stages=stages, act="silu", img_size=img_size),
        params=params, gmacs=gmacs, paper="2010.14819", licence="apache-2.0", tags=("in1k",),
    )  # fmt: skip


_tinynet("a", 1.0, 1.2, 192, 6_187_972, 0.34)
_tinynet("b", 0.75, 1.1, 188, 3_730_562, 0.20)
_tinynet("c", 0.54, 0.85, 184, 2_457_234, 0.10)
_tinynet("d", 0.54, 0.695, 152, 2_338_446, 0.052)
_tinynet("e", 0.51, 0.6, 106, 2_042_972, 0.024)
