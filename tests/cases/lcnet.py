"""PP-LCNet against timm: gates of separable convolutions that end with an activation."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("separable", 1, 5, 2, 1, 16, 0.25, skip=False, last_act=True),),)

CASES = {
    "lcnet": Case(
        "lcnet_035",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:lcnet_035",
        dict(
            blocks=[["dsa_r1_k5_s2_c16_se0.25"]],
            stem_size=8,
            num_classes=7,
            num_features=24,
            pooled=True,
            act="hard_swish",
            se=dict(rd_round_fn=None),
        ),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
