"""PP-LCNet: A Lightweight CPU Convolutional Neural Network (Cui et al., 2021, arXiv:2109.15099).

MobileNetV1's blocks, without shortcuts, which cost time on CPUs, with what is cheap there: the hard swish, 5x5 kernels
in the deeper half, squeeze-and-excitation in the last blocks alone, and a wide last layer after the pooling. Official
repository: PaddlePaddle/PaddleClas; compared here with timm's.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import register


def _row(repeats, kernel_size, stride, dim, se=0.0):
    return Blocks("separable", repeats, kernel_size, stride, 1, dim, se, skip=False, last_act=True)


_STAGES = (
    (_row(1, 3, 1, 32),),
    (_row(2, 3, 2, 64),),
    (_row(2, 3, 2, 128),),
    (_row(1, 3, 2, 256), _row(1, 5, 1, 256)),
    (_row(4, 5, 1, 256),),
    (_row(2, 5, 2, 512, 0.25),),
)


class LCNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _lcnet(name, width, params, gmacs, tag="", **told):
    config = InvertedResidualConfig(
        stages=scaled(_STAGES, width), stem_dim=round_channels(16 * width), pooled_head=True, act="hard_swish",
        se_act="relu", se_gate="hard_sigmoid", se_from_hidden=True,
    )  # fmt: skip
    register(
        f"lcnet_{name}", LCNet, config, params=params, gmacs=gmacs, paper="2109.15099", licence="apache-2.0",
        tags=(tag,), **told,
    )  # fmt: skip


_lcnet("035", 0.35, 1_644_370, 0.027, interpolation="bilinear")
_lcnet("050", 0.5, 1_880_856, 0.045, "ra2_in1k")
_lcnet("075", 0.75, 2_358_288, 0.095, "ra2_in1k")
_lcnet("100", 1.0, 2_953_800, 0.156, "ra2_in1k")
_lcnet("150", 1.5, 4_501_112, 0.334, interpolation="bilinear")
