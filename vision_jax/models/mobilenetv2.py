"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018, arXiv:1801.04381).

Shortcuts join narrow maps; between them a block widens six times, convolves depthwise and narrows again without an
activation, which would lose what a narrow map holds. Official repository: tensorflow/models
(research/slim/nets/mobilenet); compared here with timm's, with its symmetric padding; `110d` and `120d`, scaled in
depth too, are its own.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import register

_STAGES = (
    (Blocks("separable", 1, 3, 1, 1, 16),),
    *(
        (Blocks("mbconv", repeats, 3, stride, 6, dim),)
        for repeats, stride, dim in ((2, 2, 24), (3, 2, 32), (4, 2, 64), (3, 1, 96), (3, 2, 160), (1, 1, 320))
    ),
)


class MobileNetV2(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _mobilenetv2(name, width, params, gmacs, tag="", depth=1.0):
    deep = depth > 1  # then the ends stay as they are
    config = InvertedResidualConfig(
        stages=scaled(_STAGES, width, depth, fixed_ends=deep), act="relu6",
        stem_dim=32 if deep else round_channels(32 * width),
        head_dim=1280 if deep else max(1280, round_channels(1280 * width)),
    )  # fmt: skip
    register(
        f"mobilenetv2_{name}", MobileNetV2, config, params=params, gmacs=gmacs, paper="1801.04381",
        licence="apache-2.0", tags=(tag,),
    )  # fmt: skip


_mobilenetv2("035", 0.35, 1_677_128, 0.059)
_mobilenetv2("050", 0.5, 1_968_680, 0.097, "lamb_in1k")
_mobilenetv2("075", 0.75, 2_636_424, 0.21)
_mobilenetv2("100", 1.0, 3_504_872, 0.30, "ra_in1k")
_mobilenetv2("140", 1.4, 6_108_776, 0.58, "ra_in1k")
_mobilenetv2("110d", 1.1, 4_516_520, 0.43, "ra_in1k", depth=1.2)
_mobilenetv2("120d", 1.2, 5_831_144, 0.67, "ra_in1k", depth=1.4)
