"""GFNet against the authors' gfnet.py: filters of an odd map, and of four sizes.

The reference is a module `official.gfnet` around that file of raoyongming/GFNet at commit 2de48b62: `create_model`
hands its arguments to the class, and the filters keep their input's dtype, which there becomes float32.
"""

from golden import Case

FIELDS = dict(depths=(2,), embed_dims=(16,), num_classes=7, img_size=20, patch_size=4)
PYRAMID = dict(depths=(1, 1, 1, 1), embed_dims=(8, 12, 16, 20), num_classes=7, img_size=32)
CASES = {
    "gfnet": Case(
        "gfnet_ti", FIELDS, "official.gfnet:gfnet_ti", FIELDS, size=(20, 20), init=dict(depths=(1,)), maps=("blocks.1",)
    ),
    "gfnet_h": Case(
        "gfnet_h_ti",
        PYRAMID,
        "official.gfnet:gfnet_h_ti",
        PYRAMID,
        size=(32, 32),
        init=dict(depths=(1, 1, 1, 1)),
        maps=tuple(f"blocks.{i}" for i in range(4)),
    ),
}
