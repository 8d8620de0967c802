"""ViTamin against timm: a map that is no square, both kinds of shortcut in the stem."""

from golden import Case

SMALL = dict(
    img_size=(32, 48), embed_dim=24, depth=2, num_heads=3, num_classes=7, stem_dims=(8, 12), stem_depths=(1, 2)
)

CASES = {
    "vitamin": Case(
        "vitamin_small_224",
        SMALL,
        "timm:vitamin_small_224",
        SMALL,
        size=(32, 48),
        init=dict(depth=1),
        maker="references.vitamin:network",
    ),
}
