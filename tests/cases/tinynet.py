"""TinyNet against timm: SiLU and squeeze-and-excitation in separable convolutions."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("separable", 1, 5, 2, 1, 8, 0.25),),)

CASES = {
    "tinynet": Case(
        "tinynet_e",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:tinynet_e",
        dict(blocks=[["ds_r1_k5_s2_e1_c8_se0.25"]], stem_size=8, num_classes=7, act="silu", num_features=24),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
