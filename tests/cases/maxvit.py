"""MaxViT against timm: the paper's variants on odd sizes and a window that is no square; timm's own, every branch."""

from golden import Case

DIMS = dict(depths=(2, 1, 1, 1), num_classes=7)
THEIRS = dict(DIMS, embed_dim=(8, 16, 24, 32), transformer_dim_head=8)
OURS = dict(DIMS, embed_dims=(8, 16, 24, 32), head_dim=8, stem_dims=(6, 8))
SIZE = dict(img_size=(64, 96), num_classes=7)
TWO = dict(SIZE, embed_dim=(8, 16), stem_width=(6, 8), transformer_dim_head=8)
OUR_TWO = dict(SIZE, embed_dims=(8, 16), stem_dims=(6, 8), head_dim=8)

CASES = {
    "maxvit": Case(
        "maxvit_tiny_tf_224",
        dict(OURS, img_size=(61, 96), window_size=(2, 3), head_hidden=12),
        "timm:maxvit_tiny_tf_224",
        dict(THEIRS, img_size=(61, 96), stem_width=(6, 8), head_hidden_size=12, transformer_window_size=(2, 3)),
        size=(61, 96),
    ),
    "maxvit_rmlp": Case(
        "maxvit_rmlp_small_rw_224",
        dict(OUR_TWO, depths=(2, 1), position_drop_rate=0.0),
        "timm:maxvit_rmlp_small_rw_224",
        dict(TWO, depths=(2, 1), block_type=("M", "M")),
        size=(64, 96),
    ),
    "maxvit_pm": Case(
        "maxvit_tiny_pm_256",
        dict(OUR_TWO, depths=(1, 1), embed_dims=(16, 32)),
        "timm:maxvit_tiny_pm_256",
        dict(TWO, depths=(1, 1), embed_dim=(16, 32), block_type=("PM", "PM")),
        size=(64, 96),
    ),
    "maxxvitv2": Case(
        "maxxvitv2_nano_rw_256",
        dict(OUR_TWO, depths=(1, 1)),
        "timm:maxxvitv2_nano_rw_256",
        dict(TWO, depths=(1, 1), block_type=("M", "M")),
        size=(64, 96),
    ),
}
