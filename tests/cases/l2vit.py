"""L2ViT against the authors' classification/models/l2vit.py: padded images, windows and mergings, both kinds of block.

The reference is a module `official.l2vit` around that file of ChuanyangZheng/L2ViT at commit fad0341c; `create_model`
hands its arguments to the class. Of the linear attentions' divisors some are below the least that is allowed, 100.
"""

from golden import Case

SIZE = (38, 50)  # maps of 10 x 13, 5 x 7, 3 x 4 and 2 x 2
FIELDS = dict(depths=(2, 2, 1, 1), num_heads=(1, 2, 3, 2), num_classes=7)
DIMS = (8, 16, 18, 24)

CASES = {
    "l2vit": Case(
        "l2vit_tiny", dict(FIELDS, embed_dims=DIMS, window_size=4, img_size=SIZE), "official.l2vit:L2ViT_Tiny",
        dict(FIELDS, dims=DIMS, window_size=4), size=SIZE, init=dict(depths=(1, 2, 1, 1)),
    )
}  # fmt: skip
