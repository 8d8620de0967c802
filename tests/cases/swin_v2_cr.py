"""Swin V2-CR against timm: padded maps, shifted in two stages, merged from odd sizes; norms within stages."""

from golden import Case

# grids 11 x 21 and 6 x 11, in windows of 4 x 4; the second block of each stage is followed by a norm, so is each stage
SMALL = dict(img_size=(44, 84), embed_dim=16, window_size=4, depths=(3, 2), num_heads=(2, 4), num_classes=7)
OURS = dict(drop_path_rate=0.0, position_drop_rate=0.0)

CASES = {
    "swin_v2_cr": Case(
        "swinv2_cr_tiny_ns_224",
        dict(SMALL, norm_period=2, **OURS),
        "timm:swinv2_cr_tiny_ns_224",
        dict(SMALL, extra_norm_period=2),
        size=(44, 84),
        init=dict(depths=(1, 1), embed_dim=32, num_heads=(2, 4)),
    ),
}
