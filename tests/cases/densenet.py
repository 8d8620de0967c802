"""DenseNet against timm, on odd maps; the other stem: the smallest variant, live. The paper drops no branch."""

from golden import Case

CASES = {
    "densenet": Case(
        "densenetblur121d",
        dict(depths=(2, 1), growth_rate=8, num_classes=7),
        "timm:densenetblur121d",
        dict(block_config=(2, 1), growth_rate=8, num_classes=7),
        size=(26, 36),
        drop_path=(0.0, 0.15, 0.3),
    )
}
