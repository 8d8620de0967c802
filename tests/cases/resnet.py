"""ResNet against timm: both kinds of block, maps of odd sizes."""

from golden import Case

CASES = {
    "resnet_basic": Case(
        "resnet18",
        dict(img_size=(50, 70), depths=(2, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_classes=7),
        "timm:resnet18",
        dict(layers=(2, 1, 1, 1), channels=(8, 16, 24, 32), num_classes=7),
        size=(50, 70),
    ),
    "resnet_bottleneck": Case(
        "resnet50",
        dict(img_size=(66, 90), depths=(1, 2, 1, 1), embed_dims=(8, 12, 16, 24), num_classes=7),
        "timm:resnet50",
        dict(layers=(1, 2, 1, 1), channels=(8, 12, 16, 24), num_classes=7),
        size=(66, 90),
    ),
}
