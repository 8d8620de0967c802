"""MobileNetV1 against timm: activations after both convolutions, no last layer."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("separable", 1, 3, 2, 1, 16, skip=False, last_act=True),),)

CASES = {
    "mobilenetv1": Case(
        "mobilenetv1_100",
        dict(stages=STAGES, stem_dim=8, num_classes=7),
        "timm:mobilenetv1_100",
        dict(blocks=[["dsa_r1_k3_s2_c16"]], stem_size=8, num_classes=7, act="relu6", num_features=0),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
