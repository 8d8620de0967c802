"""EVA's descendants against timm: places between those of a smaller grid, centred ones, ones that count columns first.

Grids are such that float32, in which the reference counts places, holds them exactly.
"""

from golden import Case

SMALL = dict(patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)
EVA02 = dict(SMALL, img_size=(24, 32))
DINO = dict(SMALL, img_size=(16, 32))
UNSCALED = dict(dynamic_img_size=False, rope_rescale_coords=1.0)

CASES = {
    "eva02": Case(
        "eva02_base_patch16_clip_224",
        dict(EVA02, rotary_reference=12),
        "timm:eva02_base_patch16_clip_224",
        dict(EVA02, ref_feat_shape=(12, 12)),
        size=(24, 32),
        init=dict(depth=2),
    ),
    "dinov3": Case(
        "vit_small_plus_patch16_dinov3_qkvb",
        DINO,
        "timm:vit_small_plus_patch16_dinov3_qkvb",
        dict(DINO, dynamic_img_size=False),
        size=(16, 32),
        init=dict(depth=2),
    ),
    "rope_mixed": Case(
        "vit_small_patch16_rope_mixed_ape_224",
        DINO,
        "timm:vit_small_patch16_rope_mixed_ape_224",
        DINO,
        size=(16, 32),
        init=dict(depth=2),
    ),
    "sapiens2": Case(
        "vit_base_patch16_sapiens2",
        dict(DINO, depth=3, num_heads=6, num_kv_heads=2, full_blocks=1, reg_tokens=2, rotary_rescale=1.0),
        "timm:vit_base_patch16_sapiens2",
        dict(DINO, depth=3, num_heads=6, num_kv_heads=(6, 2, 6), num_reg_tokens=2, **UNSCALED),
        size=(16, 32),
        init=dict(embed_dim=96),
    ),
    "pe_core": Case(
        "vit_pe_core_base_patch16_224",
        dict(EVA02, rotary_reference=12, pool_heads=2, embed_dim=16, num_heads=4),
        "timm:vit_pe_core_base_patch16_224",
        dict(EVA02, ref_feat_shape=(12, 12), attn_pool_num_heads=2, embed_dim=16, num_heads=4),
        size=(24, 32),
        init=dict(depth=1),
    ),
}
