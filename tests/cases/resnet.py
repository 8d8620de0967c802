"""ResNet against timm: both kinds of block, every stem and shortcut, groups, what blocks may hold, maps of odd sizes.

That with Batch-Channel Normalization is compared with the authors' imagenet/models of
joe-siyuan-qiao/Batch-Channel-Normalization at commit 0244c3e9, in a module `official.resnet` that builds their network
of fewer channels and groups and gives its maps. It drops no paths; ours as other ResNets do.
"""

from golden import Case

_BASIC = dict(depths=(2, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_classes=7)
_BCN = dict(depths=(2,), embed_dims=(8,), stem_dim=8, norm_groups=4, num_classes=7)
_BOTTLENECK = dict(depths=(1, 2, 1, 1), embed_dims=(8, 12, 16, 24), num_classes=7)
_ONE = dict(_BOTTLENECK, depths=(1, 1, 1, 1))
_GROUPED = dict(cardinality=2, base_width=32)
_PLAIN = dict(deep_stem=(), stem_dim=64)


def _case(name, fields, size, theirs=None):
    """The same small configuration on both sides; `theirs`: more of it, in the reference's words."""
    kwargs = dict(layers=fields["depths"], channels=fields["embed_dims"], num_classes=fields["num_classes"])
    return Case(name, dict(fields, img_size=size), f"timm:{name}", kwargs | (theirs or {}), size=size)


CASES = {
    "resnet_basic": _case("resnet18", _BASIC, (50, 70)),
    "resnet_bottleneck": _case("resnet50", _BOTTLENECK, (66, 90)),
    "resnet_tiered": _case("resnet10t", dict(_BASIC, deep_stem=(12, 16), stem_dim=32), (50, 70), dict(stem_width=16)),
    "resnet_deep": _case("resnet50d", dict(_BOTTLENECK, deep_stem=(8, 8), stem_dim=16), (66, 90), dict(stem_width=8)),
    "resnext": _case(
        "resnext50_32x4d", dict(_BOTTLENECK, embed_dims=(16, 32, 32, 48), cardinality=4), (66, 90), dict(cardinality=4)
    ),
    "resnet_blur": _case(
        "resnetblur50",
        dict(_ONE, embed_dims=(32,) * 4, norm="group", attn="eca"),
        (34, 38),
        dict(norm_layer="groupnorm", block_args=dict(attn_layer="eca")),
    ),
    "sknet": _case(
        "skresnet50",
        dict(_ONE, stem_pool="conv", reduce_first=2, shortcut_kernel=3, attn="se"),
        (34, 38),
        dict(
            replace_stem_pool=True,
            block_reduce_first=2,
            down_kernel_size=3,
            block_args=dict(sk_kwargs=dict(split_input=True), attn_layer="se"),
        ),
    ),
    "res2net": _case("res2next50", dict(_ONE, depths=(2, 1, 1, 1), **_GROUPED), (34, 38), _GROUPED),
    "resnest": _case("resnest14d", dict(_ONE, **_GROUPED, **_PLAIN), (34, 38), dict(_GROUPED, stem_type="")),
    "resnet_bcn": Case(
        "resnet50_bcn_ws",
        dict(_BCN, img_size=(34, 38)),
        "official.resnet:resnet50_bcn_ws",
        _BCN,
        size=(34, 38),
        drop_path=(0.3,),
        names="timm",
    ),
}
