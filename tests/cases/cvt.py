"""CvT against transformers, with the released activation: maps of odd sizes, more than one head."""

from golden import Case

CASES = {
    "cvt": Case(
        "cvt_13",
        dict(
            img_size=(50, 70), depths=(1, 2, 3), embed_dims=(12, 16, 24), num_heads=(1, 2, 3), mlp_ratio=3.0,
            num_classes=7,
        ),
        "references.cvt:cvt_13",
        dict(
            depth=[1, 2, 3], embed_dim=[12, 16, 24], num_heads=[1, 2, 3], mlp_ratio=[3.0] * 3, num_labels=7,
            drop_path_rate=[0.0] * 3,
        ),
        size=(50, 70),
        names="hf",
        # linear over the last stage; transformers gives all its blocks the rate of the third
        drop_path=(0.15, 0.3),
    ),
}  # fmt: skip
