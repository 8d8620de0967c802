"""Swin V2 against timm: maps that windows tile, with offsets of other windows; padded maps, shifted in two stages."""

from golden import Case

SMALL = dict(embed_dim=16, window_size=4, num_classes=7, drop_path_rate=0.0)
# grids 16 x 8 and 8 x 4: shifted along both axes, then along one
TILED = dict(SMALL, img_size=(64, 32), depths=(2, 2), num_heads=(2, 4), pretrained_window_sizes=(3, 6))
# grids 11 x 21, 6 x 11, 3 x 6: all padded, two shifted, two merged from odd sizes; windows of 3 x 4 in the last
PADDED = dict(SMALL, img_size=(44, 84), depths=(2, 2, 1), num_heads=(2, 4, 8))

CASES = {
    "swin_v2": Case("swinv2_tiny_window8_256", TILED, "timm:swinv2_tiny_window8_256", TILED, size=(64, 32)),
    "swin_v2_padded": Case("swinv2_tiny_window8_256", PADDED, "timm:swinv2_tiny_window8_256", PADDED, size=(44, 84)),
}
