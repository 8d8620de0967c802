"""gMLP against timm: a map that is no square."""

from golden import Case

BOTH = dict(img_size=(24, 32), patch_size=8, embed_dim=16, mlp_ratio=2, num_classes=7)

CASES = {
    "gmlp": Case(
        "gmlp_ti16_224",
        dict(BOTH, depth=2),
        "timm:gmlp_ti16_224",
        dict(BOTH, num_blocks=2),
        size=(24, 32),
        maker="references.patch_mlps:gmlp",
    )
}
