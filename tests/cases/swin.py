"""Swin against timm: maps that windows tile, and maps padded for windows and for merging, shifted in two stages.

The latter have windows that differ by stage, as those that were searched for have.
"""

from golden import Case

SMALL = dict(embed_dim=16, window_size=4, num_classes=7, drop_path_rate=0.0)
# grids 16 x 8 and 8 x 4: shifted along both axes, then along one
TILED = dict(SMALL, img_size=(64, 32), depths=(2, 2), num_heads=(2, 4))
# grids 11 x 21, 6 x 11, 3 x 6: all padded, two shifted, two merged from odd sizes; windows of 3 x 4 in the last
PADDED = dict(SMALL, img_size=(44, 84), depths=(2, 2, 1), num_heads=(2, 4, 8))
WINDOWS = (4, 3, 4)

CASES = {
    "swin": Case("swin_tiny_patch4_window7_224", TILED, "timm:swin_tiny_patch4_window7_224", TILED, size=(64, 32)),
    "swin_padded": Case(
        "swin_s3_tiny_224",
        PADDED | dict(window_sizes=WINDOWS),
        "timm:swin_s3_tiny_224",
        PADDED | dict(window_size=WINDOWS),
        size=(44, 84),
    ),
}
