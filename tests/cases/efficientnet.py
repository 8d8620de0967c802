"""EfficientNet against timm: TensorFlow's padding of odd maps, relu6 and SiLU, squeeze-and-excitation everywhere."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("separable", 1, 3, 1, 1, 16, 0.25),), (Blocks("mbconv", 1, 5, 2, 6, 8, 0.5),))

CASES = {
    "efficientnet": Case(
        "tf_efficientnet_b0",
        dict(stages=STAGES, stem_dim=8, head_dim=24, num_classes=7),
        "timm:tf_efficientnet_b0",
        dict(
            blocks=[["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r1_k5_s2_e6_c8_se0.5"]],
            act="silu",
            tf=True,
            stem_size=8,
            num_features=24,
            num_classes=7,
        ),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
