"""MobileNetV3 against timm: activations of single stages, and a last layer after the pooling."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = (
    (Blocks("separable", 1, 3, 2, 1, 16, 0.5, act="relu"),),
    (Blocks("mbconv", 1, 3, 2, 3.67, 16, 0.25), Blocks("mbconv", 1, 3, 1, 2.3, 16)),
    (Blocks("conv", 1, 1, 1, 1, 24),),
)

CASES = {
    "mobilenetv3": Case(
        "mobilenetv3_small_050",
        dict(stages=STAGES, stem_dim=16, head_dim=24, num_classes=7),
        "timm:mobilenetv3_small_050",
        dict(
            blocks=[
                ["ds_r1_k3_s2_e1_c16_se0.5_nre"],
                ["ir_r1_k3_s2_e3.67_c16_se0.25", "ir_r1_k3_s1_e2.3_c16"],
                ["cn_r1_k1_s1_c24"],
            ],
            pooled=True,
            act="hard_swish",
            num_features=24,
            num_classes=7,
        ),
        size=(21, 18),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
