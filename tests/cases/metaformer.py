"""MetaFormer against timm: every token mixer, both norms, both heads; maps of odd sizes."""

from golden import Case

SIZE = (76, 108)  # maps of 19 x 27, 10 x 14, 5 x 7 and 3 x 4
FIELDS = dict(depths=(1, 1, 2, 1), num_classes=7, img_size=SIZE)
THEIRS = dict(depths=(1, 1, 2, 1), num_classes=7)
DIMS, HEADS = (16, 24, 32, 40), (16, 24, 64, 96)


def case(ours, dims=DIMS, fields=(), kwargs=(), gain=1.0):
    return Case(
        ours,
        dict(FIELDS, embed_dims=dims, **dict(fields)),
        f"references.metaformer:{ours}",
        dict(THEIRS, dims=dims, **dict(kwargs)),
        size=SIZE,
        gain=gain,
        init=dict(depths=(1, 1, 1, 1)),
    )


CASES = {
    "poolformer": case("poolformer_s12"),
    "poolformerv2": case("poolformerv2_s12"),
    "convformer": case("convformer_s18"),
    "caformer": case("caformer_s18", dims=HEADS),
    "identityformer": case("identityformer_s12", fields=dict(conv_mlp=True)),
    "randformer": case("randformer_s12", fields=dict(conv_mlp=True), kwargs=dict(tokens=(35, 12))),
}
