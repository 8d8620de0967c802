"""PVT v2 against timm: maps of odd sizes, which the reductions and the averaging do not divide."""

from golden import Case

PVT = dict(depths=(2, 1, 2, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_classes=7)

CASES = {
    "pvt_v2": Case("pvt_v2_b0", dict(PVT, img_size=(102, 74)), "timm:pvt_v2_b0", PVT, size=(102, 74)),
    "pvt_v2_li": Case(
        "pvt_v2_b2_li",
        dict(PVT, img_size=(102, 74), qkv_bias=False, mlp_ratios=(4, 2, 3, 4)),
        "timm:pvt_v2_b2_li",
        dict(PVT, qkv_bias=False, mlp_ratios=(4, 2, 3, 4)),
        size=(102, 74),
    ),
}
