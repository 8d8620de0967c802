"""EVA's descendants against timm: places between those of a smaller grid, centred ones, ones that count columns first.

Grids are such that float32, in which the reference counts places, holds them exactly.
"""

from golden import Case

SMALL = dict(patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)
EVA02 = dict(SMALL, img_size=(24, 32))


CASES = {
    "eva02": Case(
        "eva02_base_patch16_clip_224",
        dict(EVA02, rotary_reference=12),
        "timm:eva02_base_patch16_clip_224",
        dict(EVA02, ref_feat_shape=(12, 12)),
        size=(24, 32),
        init=dict(depth=2),
    ),
}
