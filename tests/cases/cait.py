"""CaiT against timm: a map that is no square."""

from golden import Case

BOTH = dict(img_size=(16, 24), patch_size=4, embed_dim=16, depth=2, num_heads=4, num_classes=7)

CASES = {
    "cait": Case(
        "cait_xxs24_224",
        dict(BOTH, layer_scale_init=1.0),
        "timm:cait_xxs24_224",
        dict(BOTH, init_values=1.0),
        size=(16, 24),
        init=dict(depth=2),
    )
}
