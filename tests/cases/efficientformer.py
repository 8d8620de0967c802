"""EfficientFormer against timm, whose biases are for a last map of 7x7: pooling and a transformer block in the last."""

from golden import Case

FIELDS = dict(depths=(1, 2), embed_dims=(16, 24), num_vit=1, num_classes=7)
CASES = {
    "efficientformer": Case(
        "efficientformer_l1",
        dict(FIELDS, mlp_ratio=2.0, img_size=(53, 56)),
        "timm:efficientformer_l1",
        dict(FIELDS, mlp_ratios=2.0),
        size=(53, 56),
        init=dict(depths=(1, 1, 1, 2)),
    )
}
