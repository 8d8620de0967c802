"""ConvNeXt and V2 against timm: every stem, norm and head; maps of odd sizes that the 2x2 downsampling cuts off."""

from golden import Case

FIELDS = dict(depths=(1, 1, 2, 1), num_classes=7, img_size=(76, 108))
THEIRS = dict(depths=(1, 1, 2, 1), num_classes=7, dims=(16, 24, 32, 40))
CASES = {
    key: Case(
        ours,
        dict(FIELDS, embed_dims=(16, 24, 32, 40), **fields),
        f"timm:{ours}",
        dict(THEIRS, **kwargs),
        size=(76, 108),
        init=dict(depths=(1, 1, 1, 1)),
    )
    for key, ours, fields, kwargs in (
        ("convnext", "convnext_atto", dict(conv_mlp=False), dict(conv_mlp=False)),
        ("convnext_ols", "convnext_atto_ols", dict(head_norm_first=True), dict(head_norm_first=True)),
        ("convnext_rms", "convnext_atto_rms", {}, {}),
        ("convnext_rms_ols", "convnext_zepto_rms_ols", {}, {}),
        (
            "convnext_mlp",
            "convnext_nano_ols",
            dict(head_hidden=48, norm_epsilon=1e-5),
            dict(head_hidden_size=48, norm_eps=1e-5),
        ),
        ("convnextv2", "convnextv2_atto", dict(conv_mlp=False), dict(conv_mlp=False)),
    )
}
