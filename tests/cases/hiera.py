"""Hiera against timm: windows, halved in windows and over the whole map; both kinds of positions and of shortcuts."""

from golden import Case

BOTH = dict(img_size=(32, 48), embed_dim=8, num_heads=2, mlp_ratio=2, num_classes=7)
OURS = dict(BOTH, depths=(1, 2, 1), local=(True, False, False))
THEIRS = dict(BOTH, stages=(1, 2, 1), q_pool=2, mask_unit_size=(4, 4), mask_unit_attn=(True, False, False))
POSITIONS = dict(global_pos_size=(3, 14))

CASES = {
    "hiera": Case("hiera_tiny_224", OURS, "timm:hiera_tiny_224", THEIRS, size=(32, 48)),
    "hiera_abswin": Case(
        "hiera_small_abswin_256",
        dict(BOTH, depths=(1, 1), local=(True, False), position_map=(3, 14)),
        "timm:hiera_small_abswin_256",
        dict(BOTH, stages=(1, 1), q_pool=1, mask_unit_size=(2, 2), mask_unit_attn=(True, False), **POSITIONS),
        size=(32, 48),
    ),
}
