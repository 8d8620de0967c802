"""Swin against timm: maps that windows tile, and maps padded for windows and for merging, shifted in two stages."""

from golden import Case

SMALL = dict(embed_dim=16, num_heads=(2, 4, 8), window_size=4, num_classes=7, drop_path_rate=0.0)
# grids 16 x 8, 8 x 4, 4 x 2: shifted along both axes, along one, and along none
TILED = dict(SMALL, img_size=(64, 32), depths=(2, 2, 1))
# grids 11 x 21, 6 x 11, 3 x 6: all padded, odd ones merged, in the last stage one axis in a window of 3, one shifted
PADDED = dict(SMALL, img_size=(44, 84), depths=(2, 2, 2))

CASES = {
    "swin": Case("swin_tiny_patch4_window7_224", TILED, "timm:swin_tiny_patch4_window7_224", TILED, size=(64, 32)),
    "swin_padded": Case(
        "swin_tiny_patch4_window7_224", PADDED, "timm:swin_tiny_patch4_window7_224", PADDED, size=(44, 84)
    ),
}
