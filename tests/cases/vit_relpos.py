"""ViTs with relative positions against timm: a network of offsets in each block, or one for all; a class token."""

from golden import Case

SMALL = dict(img_size=(24, 32), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7)
OURS = dict(SMALL, position_drop_rate=0.0)
INIT = dict(depth=1)

CASES = {
    "vit_relpos": Case(
        "vit_relpos_medium_patch16_cls_224",
        dict(OURS, position_hidden=16),
        "timm:vit_relpos_medium_patch16_cls_224",
        dict(SMALL, rel_pos_dim=16),
        size=(24, 32),
        init=INIT,
    ),
    "vit_srelpos": Case(
        "vit_relpos_small_patch16_rpn_224",
        dict(OURS, position_hidden=16, shared_position=True, fc_norm=True),
        "timm:vit_relpos_small_patch16_rpn_224",
        dict(SMALL, rel_pos_dim=16, shared_rel_pos=True, fc_norm=True),
        size=(24, 32),
        init=INIT,
    ),
}
