"""MobileNetV4 against timm: every kind of bottleneck, attention of the map and of a smaller one, strides by blurs."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = (
    (Blocks("fused", 1, 3, 2, 2, 8),),
    (
        Blocks("uib", 1, 5, 2, 2, 16, start=3),
        Blocks("mqa", 1, 3, 1, 1, 16, num_heads=2, head_dim=4, kv_stride=2),
        Blocks("uib", 1, 0, 1, 2, 16),
    ),
    (Blocks("conv", 1, 1, 1, 1, 24, skip=False),),
)

CASES = {
    "mobilenetv4": Case(
        "mobilenetv4_hybrid_large",
        dict(stages=STAGES, stem_dim=8, head_dim=24, num_classes=7, shrink="blur"),
        "timm:mobilenetv4_hybrid_large",
        dict(
            blocks=[
                ["er_r1_k3_s2_e2_c8"],
                ["uir_r1_a3_k5_s2_e2_c16", "mqa_r1_k3_h2_s1_v2_d4_c16", "uir_r1_a0_k0_s1_e2_c16"],
                ["cn_r1_k1_s1_c24"],
            ],
            pooled=True,
            act="gelu",
            stem_size=8,
            num_features=24,
            num_classes=7,
            head_bias=False,
            head_norm=True,
            aa_layer="blurpc",
            layer_scale_init_value=1e-5,
        ),
        size=(33, 42),
        maker="references.inverted_residuals:network",
    ),
}
