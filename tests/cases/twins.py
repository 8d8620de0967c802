"""Twins against timm: both pyramids, on odd maps that windows and reductions do not divide."""

from golden import Case

DIMS = dict(depths=(2, 1), embed_dims=(8, 16), num_heads=(2, 4), mlp_ratios=(2, 3), sr_ratios=(2, 1), num_classes=7)
INIT = dict(depths=(2, 1), embed_dims=(32, 64), num_heads=(2, 4), mlp_ratios=(4, 4), sr_ratios=(2, 1))

CASES = {
    "twins_svt": Case(
        "twins_svt_small",
        dict(DIMS, window_size=3),
        "timm:twins_svt_small",
        dict(DIMS, wss=(3, 3), img_size=(32, 16)),
        size=(29, 22),
        init=INIT,
    ),
    "twins_pcpvt": Case(
        "twins_pcpvt_small",
        dict(DIMS, depths=(1, 1)),
        "timm:twins_pcpvt_small",
        dict(DIMS, depths=(1, 1), img_size=(32, 16)),
        size=(32, 16),
        init=dict(INIT, depths=(1, 1)),
    ),
}
