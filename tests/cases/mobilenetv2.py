"""MobileNetV2 against timm: relu6, and a shortcut between narrow maps."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("mbconv", 1, 3, 1, 6, 8),),)

CASES = {
    "mobilenetv2": Case(
        "mobilenetv2_100",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:mobilenetv2_100",
        dict(
            blocks=[["ir_r1_k3_s1_e6_c8"]],
            stem_size=8,
            num_classes=7,
            act="relu6",
            num_features=24,
        ),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
