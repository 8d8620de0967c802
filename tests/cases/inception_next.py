"""InceptionNeXt against timm: bands wider than the last map, odd sizes that the downsamplings cut off."""

from golden import Case

FIELDS = dict(depths=(1, 2), num_classes=7)
CASES = {
    "inception_next": Case(
        "inception_next_atto",
        dict(FIELDS, embed_dims=(16, 24), mlp_ratios=(2, 3), img_size=(28, 37)),
        "timm:inception_next_atto",
        dict(FIELDS, dims=(16, 24), mlp_ratios=(2, 3)),
        size=(28, 37),
        init=dict(depths=(1, 1, 1, 1)),
    )
}
