"""XCiT against timm: a map that is no square."""

from golden import Case

BOTH = dict(patch_size=8, embed_dim=16, depth=1, num_heads=4, mlp_ratio=2, num_classes=7)

CASES = {
    "xcit": Case(
        "xcit_tiny_12_p8_224",
        BOTH,
        "timm:xcit_tiny_12_p8_224",
        BOTH,
        size=(40, 32),
        init=dict(depth=1),
    )
}
