"""PVT against transformers, set as released: maps of odd sizes, whose last rows and columns reductions leave out."""

from golden import Case

PVT = dict(depths=(2, 1, 2, 1), mlp_ratios=(4, 2, 3, 4))
DIMS, HEADS = (8, 16, 24, 32), (1, 2, 3, 4)

CASES = {
    "pvt": Case(
        "pvt_tiny",
        dict(PVT, img_size=78, embed_dims=DIMS, num_heads=HEADS, num_classes=7),
        "references.pvt:pvt_tiny",
        dict(PVT, image_size=78, hidden_sizes=DIMS, num_attention_heads=HEADS, num_labels=7),
        size=(78, 78),
        names="hf",
        maps=tuple(f"pvt.encoder.block.{i}.{depth - 1}" for i, depth in enumerate(PVT["depths"])),
    ),
}
