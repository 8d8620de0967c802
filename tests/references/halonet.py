"""timm's networks of convolutions and attention, from plain arguments."""

from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg


def network(blocks, img_size, num_classes, drop_path_rate=0.0, **config):
    """timm's ByobNet; `blocks`: a list a stage of the fields of its blocks."""
    stages = tuple(tuple(ByoBlockCfg(**block) for block in stage) for stage in blocks)
    return ByobNet(
        ByoModelCfg(blocks=stages, **config), num_classes=num_classes, img_size=img_size, drop_path_rate=drop_path_rate
    )
