"""ViT against timm: every way of pooling and of placing tokens, every option of the blocks."""

from golden import Case

VIT = dict(img_size=(32, 40), patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=7)
THIN = dict(depth=1)  # of models too large to draw whole
NARROW = dict(VIT, depth=2, num_heads=12)  # heads' lambdas, exponentials of sums over channels, stay near 1
EDGE = dict(VIT, img_size=(35, 47))


def same(name, kwargs=VIT, **options):
    """A case whose fields have the same names on both sides."""
    size = kwargs["img_size"]
    return Case(
        name, kwargs, f"timm:{name}", {k: v for k, v in kwargs.items() if k != "drop_edge"}, size=size, **options
    )


CASES = {
    "vit": same("vit_tiny_patch16_224"),
    "vit_avg": Case(
        "vit_tiny_patch16_224",
        dict(VIT, class_token=False, global_pool="avg", qkv_bias=False, qk_norm=True, layer_scale_init=1e-5),
        "timm:vit_tiny_patch16_224",
        dict(VIT, class_token=False, global_pool="avg", qkv_bias=False, qk_norm=True, init_values=1e-5),
        size=(32, 40),
    ),
    "vit_registers": same("vit_wee_patch16_reg1_gap_256", dict(VIT, reg_tokens=3)),
    "vit_placed_registers": same("vit_so150m2_patch16_reg1_gap_256", dict(VIT, reg_tokens=2), init=THIN),
    "vit_siglip": same("vit_base_patch32_siglip_256", dict(VIT, reg_tokens=1), init=THIN),
    "vit_siglip_gap": same("vit_so400m_patch14_siglip_gap_384", EDGE, init=THIN),
    "vit_dinov2": same("vit_giant_patch14_reg4_dinov2", dict(VIT, reg_tokens=2), init=THIN),
    "vit_clip": same("vit_base_patch32_clip_quickgelu_224", dict(VIT, depth=1), init=THIN),
    "vit_beit3": same("beit3_base_patch16_224", dict(VIT, depth=1, final_norm=False), init=THIN),
    "vit_norm_last": same("vit_base_patch16_rpn_224", dict(VIT, depth=1), init=THIN),
    "vit_wide": Case(
        "vit_small_patch16_18x2_224",
        dict(NARROW, differential=True),
        "timm:vit_small_patch16_18x2_224",
        dict(NARROW, attn_layer="diff"),
        size=(32, 40),
        init=THIN,
    ),
    "vit_parallel": same("vit_base_patch16_xp_224", dict(VIT, depth=2), init=THIN),
    "vit_parallel_differential": same("vit_dpwee_patch16_reg1_gap_256", NARROW, init=dict(depth=2)),
    "aimv2": same("aimv2_large_patch14_224", dict(VIT, depth=1), init=THIN),
    "deit_distilled": same("deit_tiny_distilled_patch16_224"),
    "deit3": same("deit3_small_patch16_224"),
}
