"""CrossViT against timm: patches by one convolution and by three, a branch that sees the image resized."""

from golden import Case

# 48 x 72 pixels are 4 x 6 patches of 12; at two thirds, 2 x 3 of 16
CROSSVIT = dict(img_size=(48, 72), img_scale=(1.0, 0.667), patch_size=(12, 16), embed_dim=(16, 24), num_classes=7)

CASES = {
    "crossvit": Case(
        "crossvit_tiny_240",
        dict(CROSSVIT, num_encoders=2, depths=(1, 3), num_heads=(2, 3), mlp_ratio=4.0),
        "timm:crossvit_tiny_240",
        dict(CROSSVIT, depth=((1, 3, 0),) * 2, num_heads=(2, 3), mlp_ratio=(4, 4, 1)),
        size=(48, 72),
    ),
    "crossvit_dagger": Case(
        "crossvit_9_dagger_240",
        dict(CROSSVIT, num_encoders=2, depths=(1, 2), num_heads=(2, 3), mlp_ratio=3.0, qkv_bias=False),
        "timm:crossvit_9_dagger_240",
        dict(CROSSVIT, depth=((1, 2, 0),) * 2, num_heads=(2, 3), mlp_ratio=(3, 3, 1), qkv_bias=False),
        size=(48, 72),
    ),
}
