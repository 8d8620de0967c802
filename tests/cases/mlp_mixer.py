"""MLP-Mixer against timm, which takes neither another depth nor another width: thin MLPs, a map that is no square."""

from golden import Case

SMALL = {"img_size": (48, 64), "mlp_ratio": (0.0625, 0.125), "num_classes": 7}

CASES = {"mlp_mixer": Case("mixer_s16_224", SMALL, "timm:mixer_s16_224", SMALL, size=(48, 64))}
