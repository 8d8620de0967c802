"""The small configurations that goldens are made of: family/case -> how both sides build it."""

from golden import Case

VIT = dict(img_size=(32, 40), patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=7)

CASES = {
    "vit": Case("vit_tiny_patch16_224", VIT, "timm:vit_tiny_patch16_224", VIT, size=(32, 40)),
    "vit_avg": Case(
        "vit_tiny_patch16_224",
        dict(VIT, class_token=False, global_pool="avg", qkv_bias=False, qk_norm=True, layer_scale_init=1e-5),
        "timm:vit_tiny_patch16_224",
        dict(VIT, class_token=False, global_pool="avg", qkv_bias=False, qk_norm=True, init_values=1e-5),
        size=(32, 40),
    ),
    "resnet_basic": Case(
        "resnet18",
        dict(img_size=(50, 70), depths=(2, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_classes=7),
        "timm:resnet18",
        dict(layers=(2, 1, 1, 1), channels=(8, 16, 24, 32), num_classes=7),
        size=(50, 70),
    ),
    "resnet_bottleneck": Case(
        "resnet50",
        dict(img_size=(66, 90), depths=(1, 2, 1, 1), embed_dims=(8, 12, 16, 24), num_classes=7),
        "timm:resnet50",
        dict(layers=(1, 2, 1, 1), channels=(8, 12, 16, 24), num_classes=7),
        size=(66, 90),
    ),
}
