"""PiT against timm: two tokens and heads, patches that leave pixels over, a pool of an odd map."""

from golden import Case

BOTH = dict(img_size=(26, 32), patch_size=8, num_classes=7)

CASES = {
    "pit": Case(
        "pit_ti_distilled_224",
        dict(BOTH, patch_stride=4, head_dim=4, depths=(1, 1), num_heads=(2, 4)),
        "timm:pit_ti_distilled_224",
        dict(BOTH, stride=4, base_dims=(4, 4), depth=(1, 1), heads=(2, 4)),
        size=(26, 32),
    )
}
