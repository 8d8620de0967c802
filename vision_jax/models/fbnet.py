"""FBNet (Wu et al., 2019, arXiv:1812.03443) and Single-Path NAS (Stamoulis et al., 2019, arXiv:1904.02877).

Mobile networks found by gradient descent: FBNet trains a network whose every block is a weighted sum of candidates,
with the latency on a phone in the loss; Single-Path NAS keeps one large kernel a block and learns how much of it to
use. Official repositories: facebookresearch/mobile-vision and dstamoulis/single-path-nas; compared here with timm's,
whose FBNet-C is made from the paper's figure.
"""

from vision_jax.models.inverted_residuals import Blocks, InvertedResidualConfig, InvertedResiduals
from vision_jax.registry import register


def _row(repeats, kernel_size, expansion, dim, stride=1, skip=True):
    return Blocks("mbconv", repeats, kernel_size, stride, expansion, dim, skip=skip)


_FBNET_C = (
    (_row(1, 3, 1, 16),),
    (_row(1, 3, 6, 24, 2), _row(2, 3, 1, 24)),
    (_row(1, 5, 6, 32, 2), _row(1, 5, 3, 32), _row(1, 5, 6, 32), _row(1, 3, 6, 32)),
    (_row(1, 5, 6, 64, 2), _row(1, 5, 3, 64), _row(2, 5, 6, 64)),
    (_row(3, 5, 6, 112), _row(1, 5, 3, 112)),
    (_row(4, 5, 6, 184, 2),),
    (_row(1, 3, 6, 352),),
)
_SINGLE_PATH = (
    (Blocks("separable", 1, 3, 1, 1, 16, skip=False),),
    (_row(3, 3, 3, 24, 2),),
    (_row(1, 5, 6, 40, 2), _row(3, 3, 3, 40)),
    (_row(1, 5, 6, 80, 2), _row(3, 3, 3, 80)),
    (_row(1, 5, 6, 96), _row(3, 5, 3, 96)),
    (_row(4, 5, 6, 192, 2),),
    (_row(1, 3, 6, 320, skip=False),),
)


class FBNet(InvertedResiduals):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""


_TOLD = dict(licence="apache-2.0", tags=("rmsp_in1k",), interpolation="bilinear")
register(
    "fbnetc_100", FBNet, InvertedResidualConfig(stages=_FBNET_C, stem_dim=16, head_dim=1984), params=5_572_200,
    gmacs=0.39, paper="1812.03443", **_TOLD,
)  # fmt: skip
register(
    "spnasnet_100", FBNet, InvertedResidualConfig(stages=_SINGLE_PATH), params=4_421_616, gmacs=0.33,
    paper="1904.02877", **_TOLD,
)  # fmt: skip
