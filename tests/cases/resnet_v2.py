"""ResNetV2 against timm: both blocks, stems and shortcuts, standardised filters, three kinds of norm, odd maps."""

from golden import Case


def _case(name, fields, theirs, size=(45, 58), stem_dim=8):
    shared = dict(num_classes=7, stem_dim=stem_dim)
    kwargs = dict(layers=fields["depths"], channels=fields["embed_dims"], num_classes=7, stem_chs=stem_dim)
    maker = "references.resnet_v2:network"
    return Case(name, shared | fields, f"timm:{name}", kwargs | theirs, size=size, maker=maker)


CASES = {
    "resnet_v2_bit": _case(
        "resnetv2_50x1_bit",
        dict(depths=(2, 1), embed_dims=(32, 64), norm_groups=4),
        dict(norm="group", standardized=True, stem_type="fixed"),
    ),
    "resnet_v2_basic": _case(
        "resnetv2_18d",
        dict(depths=(1, 1), embed_dims=(8, 16), deep_stem=(4, 4)),
        dict(norm="batch", basic=True, bottle_ratio=1.0, stem_type="deep", avg_down=True),
    ),
    "resnet_v2_evo": _case(
        "resnetv2_50d_evos",
        dict(depths=(1,), embed_dims=(32,), deep_stem=(16, 16), norm_groups=4),
        dict(norm="evo", stem_type="deep", avg_down=True),
        size=(18, 21),
        stem_dim=32,  # as many as the block gives, which projects its shortcut all the same
    ),
}
