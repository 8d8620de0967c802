"""EdgeNeXt against timm: all kinds of blocks on odd maps, channels that split unevenly; timm's own stem and strides."""

from golden import Case

SIZE = (76, 108)
DIMS, HEADS, SMALL = (8, 12, 16, 20), (1, 2, 2, 2), dict(kernel_sizes=(3, 5, 3, 3), num_classes=7)
CASES = {
    "edgenext": Case(
        "edgenext_xx_small",
        dict(SMALL, depths=(1, 1, 2, 1), embed_dims=DIMS, num_heads=HEADS),
        "timm:edgenext_xx_small",
        dict(SMALL, depths=(1, 1, 2, 1), dims=DIMS, heads=HEADS),
        size=SIZE,
    ),
    "edgenext_rw": Case(
        "edgenext_small_rw",
        dict(SMALL, depths=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64), num_heads=HEADS, global_depths=(0, 0, 0, 0)),
        "timm:edgenext_small_rw",
        dict(SMALL, depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), heads=HEADS, global_block_counts=(0, 0, 0, 0)),
        size=SIZE,
    ),
}
