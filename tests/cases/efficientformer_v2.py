"""EfficientFormerV2 against timm: attention on a coarser map and as a downsampling of an odd one, oblong."""

import functools
from unittest import mock

from golden import Case


def with_small_heads(**kwargs):
    """The reference with two narrow heads, which its arguments do not offer."""
    from timm.models import efficientformer_v2 as theirs

    attention = functools.partial(theirs.Attention2d, num_heads=2, key_dim=6)
    down = functools.partial(theirs.Attention2dDownsample, num_heads=2, key_dim=4)
    with mock.patch.multiple(theirs, Attention2d=attention, Attention2dDownsample=down):
        return theirs.EfficientFormerV2(**kwargs)


FIELDS = dict(depths=(0, 0, 1, 2), embed_dims=(8, 12, 16, 20), num_vit=1, mlp_ratios=(1, 1, 1, (1, 2)), num_classes=7)
CASES = {
    "efficientformer_v2": Case(
        "efficientformerv2_s0",
        dict(FIELDS, num_heads=2, key_dim=6, down_key_dim=4, img_size=(94, 61)),
        "timm:efficientformerv2_s0",
        dict(FIELDS, img_size=(94, 61)),
        size=(94, 61),
        init=dict(depths=(1, 1, 1, 1), num_vit=1),
        maker="cases.efficientformer_v2:with_small_heads",
    )
}
