"""MobileNet-EdgeTPU against timm: a 5x5 stem, a pointwise convolution, groups in a fused block."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("conv", 1, 1, 1, 1, 8, skip=False),), (Blocks("fused", 1, 3, 2, 4, 8, group_width=8),))

CASES = {
    "mobilenet_edgetpu": Case(
        "mobilenet_edgetpu_v2_s",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:mobilenet_edgetpu_v2_s",
        dict(
            blocks=[["cn_r1_k1_s1_c8"], ["er_r1_k3_s2_e4_gs8_c8"]],
            stem_size=8,
            num_classes=7,
            stem_kernel_size=5,
            num_features=24,
        ),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
