"""MnasNet: Platform-Aware Neural Architecture Search for Mobile (Tan et al., 2019, arXiv:1807.11626).

A search over the blocks of each stage (kind, kernel, expansion, squeeze-and-excitation, channels, repeats), rewarded by
accuracy times latency on a phone, (latency / target)^-0.07. `semnasnet_*` is the paper's A1, `mnasnet_*` its B1 without
squeeze-and-excitation, `mnasnet_small` the released code's small one. Official repository: tensorflow/tpu
(models/official/mnasnet); compared here with timm's, with its symmetric padding.
"""

from vision_jax.layers.channels import round_channels
from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals, scaled
from vision_jax.registry import register

_A1 = (
    (Blocks("separable", 1, 3, 1, 1, 16, skip=False),),
    (Blocks("mbconv", 2, 3, 2, 6, 24),),
    (Blocks("mbconv", 3, 5, 2, 3, 40, 0.25),),
    (Blocks("mbconv", 4, 3, 2, 6, 80),),
    (Blocks("mbconv", 2, 3, 1, 6, 112, 0.25),),
    (Blocks("mbconv", 3, 5, 2, 6, 160, 0.25),),
    (Blocks("mbconv", 1, 3, 1, 6, 320),),
)
_B1 = (
    (Blocks("separable", 1, 3, 1, 1, 16, skip=False),),
    (Blocks("mbconv", 3, 3, 2, 3, 24),),
    (Blocks("mbconv", 3, 5, 2, 3, 40),),
    (Blocks("mbconv", 3, 5, 2, 6, 80),),
    (Blocks("mbconv", 2, 3, 1, 6, 96),),
    (Blocks("mbconv", 4, 5, 2, 6, 192),),
    (Blocks("mbconv", 1, 3, 1, 6, 320, skip=False),),
)
_SMALL = (
    (Blocks("separable", 1, 3, 1, 1, 8),),
    (Blocks("mbconv", 1, 3, 2, 3, 16),),
    (Blocks("mbconv", 2, 3, 2, 6, 16),),
    (Blocks("mbconv", 4, 5, 2, 6, 32, 0.25),),
    (Blocks("mbconv", 3, 3, 1, 6, 32, 0.25),),
    (Blocks("mbconv", 3, 5, 2, 6, 88, 0.25),),
    (Blocks("mbconv", 1, 3, 1, 6, 144),),
)


class MnasNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


def _mnasnet(name, stages, width, params, gmacs, tag="", stem=32):
    config = InvertedResidualConfig(stages=scaled(stages, width), stem_dim=round_channels(stem * width))
    register(name, MnasNet, config, params=params, gmacs=gmacs, paper="1807.11626", licence="apache-2.0", tags=(tag,))


_mnasnet("semnasnet_050", _A1, 0.5, 2_082_006, 0.11)
_mnasnet("semnasnet_075", _A1, 0.75, 2_912_278, 0.23, "rmsp_in1k")
_mnasnet("semnasnet_100", _A1, 1.0, 3_887_038, 0.31, "rmsp_in1k")
_mnasnet("semnasnet_140", _A1, 1.4, 6_105_992, 0.60)
_mnasnet("mnasnet_050", _B1, 0.5, 2_218_512, 0.11)
_mnasnet("mnasnet_075", _B1, 0.75, 3_170_208, 0.23)
_mnasnet("mnasnet_100", _B1, 1.0, 4_383_312, 0.33, "rmsp_in1k")
_mnasnet("mnasnet_140", _B1, 1.4, 7_115_728, 0.60)
_mnasnet("mnasnet_small", _SMALL, 1.0, 2_030_264, 0.07, "lamb_in1k", stem=8)
