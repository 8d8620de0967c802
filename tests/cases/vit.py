"""ViT against timm: class token or average, every option of the attention."""

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
}
