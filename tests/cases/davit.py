"""DaViT against timm: odd maps that windows do not tile; the released attention and Florence-2's."""

from golden import Case

DIMS = dict(depths=(1, 1), embed_dims=(8, 16), num_heads=(2, 4), window_size=3, num_classes=7)
INIT = dict(depths=(1, 1), embed_dims=(32, 64), num_heads=(2, 4))

CASES = {
    "davit": Case("davit_tiny", DIMS, "timm:davit_tiny", DIMS, size=(18, 14), init=INIT),
    "davit_fl": Case("davit_base_fl", DIMS, "timm:davit_base_fl", DIMS, size=(18, 14), init=INIT),
}
