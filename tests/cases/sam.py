"""SAM's image encoder against timm: maps that windows do not tile, local and global blocks; no neck, no positions."""

from golden import Case

DIMS = dict(img_size=(40, 32), patch_size=8, embed_dim=24, num_heads=3, window_size=3, num_classes=7)
INIT = dict(depth=2)

CASES = {
    "sam": Case(
        "samvit_base_patch16",
        dict(DIMS, depth=3, global_every=2, neck_chans=8),
        "timm:samvit_base_patch16",
        dict(DIMS, depth=3, global_attn_indexes=(1,), neck_chans=8),
        size=(40, 32),
        init=INIT,
    ),
    "sam_bare": Case(
        "samvit_base_patch16_224",
        dict(DIMS, depth=1),
        "timm:samvit_base_patch16_224",
        dict(DIMS, depth=1),
        size=(40, 32),
        init=dict(depth=1),
    ),
}
