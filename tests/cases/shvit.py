"""SHViT against timm: stages without and with attention, odd maps. timm has no stochastic depth: the rates are ours."""

from golden import Case

FIELDS = dict(num_classes=7)
SMALL = dict(depths=(1, 2), embed_dims=(16, 24), attention_dims=(5, 7), attend=(False, True), img_size=(81, 96))
CASES = {
    "shvit": Case(
        "shvit_s1",
        dict(FIELDS, **SMALL),
        "timm:shvit_s1",
        dict(FIELDS, depth=(1, 2), embed_dim=(16, 24), partial_dim=(5, 7), qk_dim=(16, 16), types=("i", "s")),
        size=(81, 96),
        drop_path=(0.15, 0.3),
    )
}
