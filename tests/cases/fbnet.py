"""FBNet against timm: inverted bottlenecks that do not widen."""

from golden import Case
from vision_jax.models.inverted_residuals import Blocks

STAGES = ((Blocks("mbconv", 1, 5, 2, 1, 8),),)

CASES = {
    "fbnet": Case(
        "fbnetc_100",
        dict(stages=STAGES, stem_dim=8, num_classes=7, head_dim=24),
        "timm:fbnetc_100",
        dict(blocks=[["ir_r1_k5_s2_e1_c8"]], stem_size=8, num_classes=7, num_features=24),
        size=(14, 17),
        gain=2.0,
        maker="references.inverted_residuals:network",
    ),
}
