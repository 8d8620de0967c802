"""LeViT against timm: blocks and downsamplings on odd maps, linear maps with two heads, convolutions with one."""

from golden import Case

OURS = dict(depths=(1, 1), embed_dims=(16, 24), num_heads=(2, 3), key_dim=6, img_size=(48, 80), num_classes=7)
THEIRS = dict(img_size=(48, 80), depth=(1, 1), embed_dim=(16, 24), num_heads=(2, 3), key_dim=6, num_classes=7)
CASES = {"levit": Case("levit_128s", OURS, "timm:levit_128s", THEIRS, size=(48, 80))}
