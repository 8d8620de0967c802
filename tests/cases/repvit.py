"""RepViT against timm: blocks with and without squeeze-and-excitation on odd maps; the first release's token mixer.

timm has no stochastic depth: the rates are ours.
"""

from golden import Case

OURS, THEIRS = (
    {depths: (1, 2), embed_dims: (12, 16), "num_classes": 7}
    for depths, embed_dims in (("depths", "embed_dims"), ("depth", "embed_dim"))
)
CASES = {
    "repvit": Case("repvit_m0_9", OURS, "timm:repvit_m0_9", THEIRS, size=(53, 64), drop_path=(0.15, 0.3)),
    "repvit_legacy": Case(
        "repvit_m1",
        dict(OURS, depths=(1,), embed_dims=(12,), distilled=False),
        "timm:repvit_m1",
        dict(THEIRS, depth=(1,), embed_dim=(12,), distillation=False),
        size=(24, 32),
        drop_path=(0.0,),
    ),
}
