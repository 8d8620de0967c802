"""VOLO against timm: maps of odd and of even sizes under the outlookers, with and without biases."""

from golden import Case

VOLO = dict(embed_dims=(12, 16, 16, 16), num_heads=(2, 4, 4, 2), num_classes=7)

CASES = {
    "volo": Case(
        "volo_d1_224",
        dict(VOLO, img_size=(40, 56), depths=(2, 1, 2, 1), stem_dim=8),
        "timm:volo_d1_224",
        dict(VOLO, img_size=(40, 56), layers=(2, 1, 2, 1), stem_hidden_dim=8),
        size=(40, 56),
        maker="timm.models.volo:VOLO",
    ),
    "volo_bias": Case(
        "volo_d5_224",
        dict(VOLO, img_size=(48, 32), depths=(1, 1, 1, 1), stem_dim=8, qkv_bias=True, mlp_ratio=4.0),
        "timm:volo_d5_224",
        dict(VOLO, img_size=(48, 32), layers=(1, 1, 1, 1), stem_hidden_dim=8, qkv_bias=True, mlp_ratio=4.0),
        size=(48, 32),
        maker="timm.models.volo:VOLO",
    ),
}
