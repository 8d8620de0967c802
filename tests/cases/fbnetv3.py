"""FBNetV3 against timm: gates of the channels that a block is given, no bias at the end."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("mbconv", 1, 5, 2, 3, 16, 0.75),), (Blocks("conv", 1, 1, 1, 1, 24, skip=False),))

CASES = {
    "fbnetv3": Case(
        "fbnetv3_b",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:fbnetv3_b",
        dict(
            blocks=[["ir_r1_k5_s2_e3_c16_se0.75"], ["cn_r1_k1_s1_c24"]],
            stem_size=8,
            num_classes=7,
            num_features=24,
            pooled=True,
            act="hard_swish",
            head_bias=False,
            se_from_exp=False,
            se=dict(force_act_layer=None),
        ),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
