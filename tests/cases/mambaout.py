"""MambaOut against timm: the paper's, and timm's own with everything that differs; maps of odd sizes."""

from golden import Case

FIELDS = dict(depths=(1, 1, 2, 1), num_classes=7, img_size=(76, 108))
THEIRS = dict(depths=(1, 1, 2, 1), num_classes=7)
DIMS = (16, 24, 32, 40)
CASES = {
    "mambaout": Case(
        "mambaout_femto",
        dict(FIELDS, embed_dims=DIMS),
        "timm:mambaout_femto",
        dict(THEIRS, dims=DIMS),
        size=(76, 108),
        init=dict(depths=(1, 1, 1, 1)),
    ),
    "mambaout_rw": Case(
        "mambaout_base_wide_rw",
        dict(FIELDS, embed_dims=DIMS),
        "timm:mambaout_base_wide_rw",
        dict(THEIRS, dims=DIMS),
        size=(76, 108),
        init=dict(depths=(1, 1, 1, 1)),
    ),
}
