"""MnasNet against timm: separable and inverted bottlenecks, with squeeze-and-excitation and without."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("separable", 1, 3, 1, 1, 16),), (Blocks("mbconv", 2, 3, 2, 3, 16, 0.25),))

CASES = {
    "mnasnet": Case(
        "mnasnet_small",
        dict(stages=STAGES, stem_dim=8, head_dim=24, num_classes=7),
        "timm:mnasnet_small",
        dict(
            blocks=[["ds_r1_k3_s1_e1_c16"], ["ir_r2_k3_s2_e3_c16_se0.25"]],
            stem_size=8,
            num_features=24,
            num_classes=7,
        ),
        size=(13, 18),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
