"""BEiT against timm: relative positions of a map that is no square, and the class token's."""

from golden import Case

BOTH = dict(img_size=(24, 32), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)

CASES = {
    "beit": Case("beit_base_patch16_224", BOTH, "timm:beit_base_patch16_224", BOTH, size=(24, 32), init=dict(depth=2))
}
