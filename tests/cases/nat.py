"""NAT, DiNAT, DiNAT-S and the isotropic models against their authors' code; see `references.nat` for its operator.

Maps of odd sizes, larger than the window, smaller along one axis and along both: padded. Dilations that divide the map
and that do not. With and without layer scale.
"""

from golden import Case

SIZE = (44, 58)  # maps of 11 x 15, 6 x 8 and 3 x 4


def case(ours, maker, maps, size, shared, fields, kwargs):
    return Case(
        ours, dict(shared, drop_path_rate=0.0, **fields), f"references.nat:{ours}",
        dict(shared, drop_path_rate=0.0, **kwargs), size=size, maps=maps, maker=f"references.nat:{maker}",
        names="official",
    )  # fmt: skip


def staged(ours, maker, levels, depths, dilations, *, size=SIZE, fields=(), kwargs=(), **shared):
    shared = dict(embed_dim=16, depths=depths, num_heads=(2, 2, 4), mlp_ratio=2.0, num_classes=7, **shared)
    every = [[1, dilation][:depth] for depth, dilation in zip(depths, dilations, strict=True)]
    return case(
        ours, maker, tuple(f"{levels}.{i}.blocks.{depth - 1}" for i, depth in enumerate(depths)), size, shared,
        dict(img_size=size, dilations=dilations, **dict(fields)), dict(dilations=every, **dict(kwargs)),
    )  # fmt: skip


CASES = {
    "nat": staged("nat_mini", "NAT", "levels", (1, 1, 1), (1, 1, 1), kernel_size=7),
    "dinat": staged(
        "dinat_base", "NAT", "levels", (2, 2, 1), (2, 2, 1), kernel_size=5, fields=dict(layer_scale_init=1e-5),
        kwargs=dict(layer_scale=1e-5),
    ),
    # maps of 12 x 15, the last patches padded, 6 x 8 and 3 x 4
    "dinat_s": staged("dinat_s_tiny", "DiNAT_s", "layers", (2, 1, 1), (3, 1, 1), size=(45, 58), kernel_size=3),
    "dinat_isotropic": case(
        "dinat_isotropic_small", "NATIsotropic", ("layers.2",), (48, 48),
        dict(img_size=48, patch_size=4, embed_dim=32, num_classes=7, kernel_size=5),
        dict(depths=(3,), num_heads=(4,), dilations=(2,)), dict(depth=3, num_heads=4, dilation=2),
    ),
}  # fmt: skip
