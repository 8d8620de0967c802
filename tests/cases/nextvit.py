"""Next-ViT against timm: blocks of both kinds before and after each other, runs that leave tokens over, odd maps."""

from golden import Case


def narrow(drop_path_rate=0.0):
    """The reference with stages narrower than its arguments offer."""
    import torch
    from timm.models import nextvit as theirs

    model = theirs.NextViT(3, 7, stem_chs=(6, 8, 32), depths=(1, 1, 5, 1))
    conv, mixed = theirs.NextConvBlock, theirs.NextTransformerBlock
    rates = [drop_path_rate * i / 4 for i in range(5)]
    model.stages = torch.nn.Sequential(
        theirs.NextStage(32, [32], [conv], stride=1, drop_path=rates[:1]),
        theirs.NextStage(32, [32, 128, 32], [conv, mixed, conv], 2, 2, 0.75, drop_path=rates[1:4]),
        theirs.NextStage(32, [128], [mixed], 2, 1, 0.75, drop_path=rates[4:]),
    )
    model.norm, model.head = torch.nn.BatchNorm2d(128), theirs.ClassifierHead(128, 7)
    return model


CASES = {
    "nextvit": Case(
        "nextvit_small",
        dict(
            stem_dims=(6, 8, 32, 32),
            depths=(1, 3, 1),
            embed_dims=(32, 32, 32),
            mixed_dims=(0, 128, 128),
            mixed_every=(0, 2, 1),
            sr_ratios=(8, 2, 1),
            num_classes=7,
            img_size=(53, 44),
        ),
        "timm:nextvit_small",
        {},
        size=(53, 44),
        init=dict(depths=(1, 4, 5, 3)),
        maker="cases.nextvit:narrow",
        drop_path=(0.075, 0.15, 0.225, 0.3),  # of the blocks; a transformer's branches take shares of it
    )
}
