"""FastViT against timm, as MobileCLIP's first towers: a mixer, ways down with gates and without, attention."""

from golden import Case

OURS = dict(depths=(1, 0, 0, 1), embed_dims=(8, 8, 16, 32), num_classes=7)
THEIRS = dict(layers=(1, 0, 0, 1), embed_dims=(8, 8, 16, 32), num_classes=7)
CASES = {"fastvit": Case("fastvit_mci0", OURS, "timm:fastvit_mci0", THEIRS, size=(76, 108))}
