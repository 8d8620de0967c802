"""ConViT against timm: four heads on a square of offsets, five with one over; with and without biases."""

from golden import Case

CONVIT = dict(img_size=32, patch_size=8, depth=4, num_classes=7)

CASES = {
    "convit": Case(
        "convit_tiny",
        dict(CONVIT, embed_dim=32, num_heads=4, local_depth=2),
        "timm:convit_tiny",
        dict(CONVIT, embed_dim=8, num_heads=4, local_up_to_layer=2),
    ),
    "convit_five_heads": Case(
        "convit_tiny",
        dict(CONVIT, embed_dim=30, num_heads=5, local_depth=3, qkv_bias=True, locality_strength=0.5),
        "timm:convit_tiny",
        dict(CONVIT, embed_dim=6, num_heads=5, local_up_to_layer=3, qkv_bias=True, locality_strength=0.5),
    ),
}
