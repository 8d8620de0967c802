"""Visformer against timm: convolutional and attending stages, a map that is no square."""

from golden import Case

BOTH = dict(img_size=(32, 64), mlp_ratio=2, num_classes=7)

CASES = {
    "visformer": Case(
        "visformer_tiny",
        dict(BOTH, stem_dim=8, depths=(1, 1, 1), embed_dims=(8, 16, 32), num_heads=(0, 2, 2), groups=4),
        "timm:visformer_tiny",
        dict(BOTH, init_channels=8, depth=(1, 1, 1), embed_dim=16, num_heads=2, group=4),
        size=(32, 64),
    )
}
