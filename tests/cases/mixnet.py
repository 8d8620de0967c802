"""MixNet against timm: shares of the channels that differ, also of pointwise convolutions, SiLU in a stage."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("mbconv", 1, (3, 5, 7), 2, 4, 24, 0.5, act="silu", splits=(2, 2)),),)

CASES = {
    "mixnet": Case(
        "tf_mixnet_s",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:tf_mixnet_s",
        dict(
            blocks=[["ir_r1_k3.5.7_a1.1_p1.1_s2_e4_c24_se0.5_nsw"]],
            stem_size=8,
            num_classes=7,
            tf=True,
            num_features=24,
        ),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
