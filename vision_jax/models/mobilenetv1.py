"""MobileNets: Efficient CNNs for Mobile Vision Applications (Howard et al., 2017, arXiv:1704.04861).

Every convolution but the first is a depthwise one followed by a pointwise one: an eighth or a ninth of the cost of a
dense 3x3. Official repository: tensorflow/models (research/slim/nets/mobilenet_v1.py); compared here with timm's, with
its symmetric padding; `100h` has a wide last layer, as the networks after it do.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, register

_STAGES = tuple(
    (Blocks("separable", repeats, 3, stride, 1, dim, skip=False, last_act=True),)
    for repeats, stride, dim in ((1, 1, 64), (2, 2, 128), (2, 2, 256), (6, 2, 512), (2, 2, 1024))
)


class MobileNetV1(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _mobilenetv1(name, width, params, gmacs, head_dim=0, **told):
    config = InvertedResidualConfig(
        stages=scaled(_STAGES, width), stem_dim=round_channels(32 * width), head_dim=head_dim, act="relu6"
    )
    register(
        f"mobilenetv1_{name}", MobileNetV1, config, params=params, gmacs=gmacs, paper="1704.04861",
        licence="apache-2.0", tags=("ra4_e3600_r224_in1k",), mean=INCEPTION_MEAN, std=INCEPTION_STD, **told,
    )  # fmt: skip


_mobilenetv1("100", 1.0, 4_231_976, 0.57)
_mobilenetv1("100h", 1.0, 5_282_600, 0.62, head_dim=1024)
_mobilenetv1("125", 1.25, 6_270_840, 0.88, crop_pct=0.9)
