"""TNT against timm: both releases, with and without biases, fewer words than pixels allow."""

from golden import Case

TNT = dict(img_size=(32, 48), patch_size=16, embed_dim=24, inner_dim=8, depth=3, num_classes=7)

CASES = {
    "tnt": Case(
        "tnt_s_patch16_224",
        dict(TNT, num_heads=3, inner_num_heads=2),
        "timm:tnt_s_patch16_224",
        dict(TNT, num_heads_outer=3, num_heads_inner=2),
        size=(32, 48),
    ),
    "tnt_legacy": Case(
        "tnt_s_legacy_patch16_224",
        dict(TNT, num_heads=3, qkv_bias=True, mlp_ratio=3.0, stride=8),
        "timm:tnt_s_legacy_patch16_224",
        dict(TNT, num_heads_outer=3, qkv_bias=True, mlp_ratio=3.0, first_stride=8),
        size=(32, 48),
    ),
}
