"""GC ViT against timm: windows that are no squares, queries from maps halved once and not at all."""

from golden import Case

BOTH = dict(depths=(2, 2), embed_dim=8, num_heads=(2, 4), mlp_ratio=2, num_classes=7, img_size=(16, 24))

CASES = {
    "gcvit": Case(
        "gcvit_xxtiny",
        dict(BOTH, window_ratios=(8, 8), layer_scale_init=0.1),
        "timm:gcvit_xxtiny",
        dict(BOTH, window_ratio=(8, 8), layer_scale=0.1),
        size=(16, 24),
        init=dict(embed_dim=32),
        maker="timm.models.gcvit:GlobalContextVit",
    ),
}
