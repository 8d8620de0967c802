"""TinyViT against timm: a stage of convolutions, one of attention in windows that do not tile its map."""

from golden import Case

BOTH = dict(depths=(1, 2), embed_dims=(8, 12), num_heads=(1, 2), window_sizes=(3, 3), num_classes=7)
INIT = dict(num_classes=9)
CASES = {"tiny_vit": Case("tiny_vit_5m_224", BOTH, "timm:tiny_vit_5m_224", BOTH, size=(53, 48), init=INIT)}
