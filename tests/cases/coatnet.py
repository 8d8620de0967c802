"""CoAtNet against timm: the paper's; what timm tried, all at once; ConvNeXt's block. Maps are no squares."""

from golden import Case

SIZE = dict(img_size=(32, 48), num_classes=7)
TWO = dict(SIZE, depths=(1, 1), stem_width=(6, 8), transformer_dim_head=8, block_type=("C", "T"))
OUR_TWO = dict(SIZE, depths=(1, 1), conv_depths=(1, 0), stem_dims=(6, 8), head_dim=8)

CASES = {
    "coatnet": Case(
        "coatnet_0_224",
        dict(OUR_TWO, embed_dims=(8, 16), head_hidden=12),
        "timm:coatnet_0_224",
        dict(TWO, embed_dim=(8, 16), head_hidden_size=12),
        size=(32, 48),
    ),
    "coatnet_cc": Case(
        "coatnet_nano_cc_224",
        dict(
            OUR_TWO,
            depths=(1, 2, 1),
            conv_depths=(1, 1, 0),
            embed_dims=(8, 16, 24),
            pool="max",
            se_first=True,
            shortcut_bias=False,
            batch_norm=True,
            position="mlp",
            position_hidden=16,
            position_drop_rate=0.0,
            layer_scale_init=1e-6,
        ),
        "timm:coatnet_nano_cc_224",
        dict(
            TWO,
            depths=(1, 2, 1),
            embed_dim=(8, 16, 24),
            block_type=("C", ("C", "T"), "T"),
            conv_pool_type="max",
            transformer_pool_type="max",
            conv_attn_early=True,
            transformer_shortcut_bias=False,
            transformer_norm_layer="batchnorm2d",
            transformer_rel_pos_type="mlp",
            transformer_rel_pos_dim=16,
            transformer_init_values=1e-6,
        ),
        size=(32, 48),
    ),
    "coatnext": Case(
        "coatnext_nano_rw_224",
        dict(OUR_TWO, embed_dims=(8, 16)),
        "timm:coatnext_nano_rw_224",
        dict(TWO, embed_dim=(8, 16)),
        size=(32, 48),
    ),
}
