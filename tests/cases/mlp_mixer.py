"""MLP-Mixer and timm's gated one against timm: a map that is no square."""

from golden import Case

BOTH = dict(img_size=(24, 32), patch_size=8, embed_dim=16, mlp_ratio=(0.5, 2), num_classes=7)
OURS, THEIRS = dict(BOTH, depth=2), dict(BOTH, num_blocks=2)

CASES = {
    "mlp_mixer": Case(
        "mixer_s16_224", OURS, "timm:mixer_s16_224", THEIRS, size=(24, 32), maker="timm.models.mlp_mixer:MlpMixer"
    ),
    "gmixer": Case(
        "gmixer_12_224",
        OURS,
        "timm:gmixer_12_224",
        THEIRS,
        size=(24, 32),
        maker="references.patch_mlps:gmixer",
    ),
}
