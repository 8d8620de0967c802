"""NesT against timm: two levels, with TensorFlow's padding; the layer test of pooling has the other."""

from golden import Case

BOTH = dict(img_size=24, embed_dims=(12, 16), depths=(1, 2), num_heads=(2, 4), num_classes=7)

CASES = {
    "nest": Case(
        "nest_tiny_jx",
        BOTH,
        "timm:nest_tiny_jx",
        dict(BOTH, num_levels=2, pad_type="same"),
        size=(24, 24),
        maker="timm.models.nest:Nest",
    )
}
