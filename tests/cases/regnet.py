"""RegNet against timm, in four stages, the last of which has two blocks.

With group norms, linear ends and no shortcuts where shapes change; with norms first and means of odd maps. Batch norms
last and strided shortcuts: the smallest RegNetX, live.
"""

from golden import Case

WIDTHS = dict(depth=5, multiplier=1.6, num_classes=7)
THEIRS = dict(depth=5, wm=1.6, num_classes=7)

CASES = {
    "regnet_sgn": Case(
        "regnety_040_sgn",
        dict(
            WIDTHS,
            initial_width=16,
            slope=16.0,
            group_width=16,
            group_share=0.9,
            stem_dim=16,
            head_dim=16,
            shortcut=None,
            linear=True,
        ),
        "timm:regnety_040_sgn",
        dict(
            THEIRS,
            w0=16,
            wa=16.0,
            group_size=16,
            group_min_ratio=0.9,
            stem_width=16,
            num_features=16,
            downsample="",
            linear_out=True,
        ),
    ),
    "regnetv": Case(
        "regnetv_064",
        dict(WIDTHS, initial_width=8, slope=8.0, group_width=4, se_ratio=0.0, stem_dim=8),
        "timm:regnetv_064",
        dict(THEIRS, w0=8, wa=8.0, group_size=4, se_ratio=0.0, stem_width=8),
        size=(42, 64),
    ),
}
