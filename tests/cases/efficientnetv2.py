"""EfficientNetV2 against timm: a plain convolution with a shortcut, fused blocks, TensorFlow's padding."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = (
    (Blocks("conv", 1, 3, 1, 1, 8),),
    (Blocks("fused", 2, 3, 2, 4, 8),),
    (Blocks("mbconv", 1, 3, 2, 4, 16, 0.25),),
)

CASES = {
    "efficientnetv2": Case(
        "tf_efficientnetv2_b0",
        dict(stages=STAGES, stem_dim=8, head_dim=24, num_classes=7),
        "timm:tf_efficientnetv2_b0",
        dict(
            blocks=[["cn_r1_k3_s1_e1_c8_skip"], ["er_r2_k3_s2_e4_c8"], ["ir_r1_k3_s2_e4_c16_se0.25"]],
            act="silu",
            tf=True,
            stem_size=8,
            num_features=24,
            num_classes=7,
        ),
        size=(22, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
