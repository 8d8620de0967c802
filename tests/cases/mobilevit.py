"""MobileViT against timm: bottlenecks with and without shortcut, transformers on a map that patches do not tile.

The networks are spelled out on both sides.
"""

from golden import Case

SIZE = (20, 32)  # the transformers' map is of 5 x 8


def _inverted(d, s):
    return dict(type="bottle", d=d, c=16, s=s, gs=1, br=2.0, block_kwargs=dict(bottle_in=True, linear_out=True))


def _case(name, kind, depth, ours, br=1.0, num_features=None, **kwargs):
    transformer = dict(transformer_depth=depth, patch_size=2, **kwargs)
    last = dict(type=kind, d=1, c=16, s=1, gs=1 if kind == "mobilevit2" else None, br=br, block_kwargs=transformer)
    fields = dict(stem_dim=8, depths=(2, 1), embed_dims=(16, 16), expansion=2.0, transformer_depths=(0, depth))
    config = dict(stem_chs=8, stem_type="3x3", stem_pool="", downsample="", act_layer="silu", num_features=num_features)
    return Case(
        name,
        dict(fields, num_classes=7, **ours),
        f"timm:{name}",
        dict(blocks=[[_inverted(2, 1)], [_inverted(1, 2), last]], img_size=SIZE, num_classes=7, **config),
        size=SIZE,
        maker="references.halonet:network",
    )


CASES = {
    "mobilevit": _case(
        "mobilevit_xxs",
        "mobilevit",
        2,
        dict(transformer_dims=(0, 12), num_heads=2, head_dim=20),
        num_features=20,
        transformer_dim=12,
        num_heads=2,
    ),
    "mobilevitv2": _case("mobilevitv2_050", "mobilevit2", 1, dict(transformer_dims=(0, 8)), br=0.5),
}
