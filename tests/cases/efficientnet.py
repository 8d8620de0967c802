"""EfficientNet against timm: TensorFlow's padding of odd maps, relu6 and SiLU, squeeze-and-excitation everywhere.

And what its relatives have: folded maps, relu in single stages and kernels of each image's own; groups, group norms,
blurs and global context.
"""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("separable", 1, 3, 1, 1, 16, 0.25),), (Blocks("mbconv", 1, 5, 2, 6, 8, 0.5),))
FOLDED = (
    (Blocks("folded", 1, 3, 2, 4, 32, 0.5),),
    (Blocks("fused", 1, 3, 1, 0.5, 16, 0.25, act="relu"),),
    (Blocks("mbconv", 1, 5, 2, 2, 16, 0.5, num_experts=3),),
)
GROUPED = (
    (Blocks("separable", 1, 3, 1, 1, 16, 0.25, group_width=8),),
    (Blocks("fused", 1, 3, 1, 2, 16, 0.5, group_width=4),),
    (Blocks("mbconv", 1, 3, 2, 2, 24, 0.5, group_width=8),),
)
SMALL = dict(stem_dim=8, head_dim=24, num_classes=7)
THEIRS = dict(act="silu", stem_size=8, num_features=24, num_classes=7)
HOW = dict(gain=2.0, maker="references.inverted_residuals:network")

CASES = {
    "efficientnet": Case(
        "tf_efficientnet_b0",
        dict(SMALL, stages=STAGES),
        "timm:tf_efficientnet_b0",
        dict(THEIRS, blocks=[["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r1_k5_s2_e6_c8_se0.5"]], tf=True),
        size=(14, 17),
        **HOW,
    ),
    "efficientnet_cc": Case(
        "tf_efficientnet_cc_b0_4e",
        dict(SMALL, stages=FOLDED),
        "timm:tf_efficientnet_cc_b0_4e",
        dict(
            THEIRS,
            blocks=[
                ["ds_r1_k3_s1_e1_c8_se0.5_d1"],
                ["er_r1_k3_s2_e2_c16_se0.25_nre"],
                ["ir_r1_k5_s2_e2_c16_se0.5_cc3"],
            ],
            tf=True,
        ),
        size=(22, 33),
        **HOW,
    ),
    "efficientnet_gn": Case(
        "efficientnet_b0_g8_gn",
        dict(SMALL, stem_dim=16, stages=GROUPED, shrink="blur", global_context=True),
        "timm:efficientnet_b0_g8_gn",
        dict(
            THEIRS,
            stem_size=16,
            blocks=[
                ["ds_r1_k3_s1_e1_c16_se0.25_gs8"],
                ["er_r1_k3_s1_e2_c16_se0.5_gs4"],
                ["ir_r1_k3_s2_e2_c24_se0.5_gs8"],
            ],
            norm_width=8,
            se_layer="gc",
            aa_layer="blurpc",
        ),
        size=(14, 17),
        **HOW,
    ),
}
