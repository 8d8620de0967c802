"""FocalNet against timm: odd maps; norms first, and norms last with overlapping windows and scaled branches."""

from golden import Case

SMALL = dict(embed_dim=8, depths=(1, 1), mlp_ratio=2, num_classes=7, drop_path_rate=0.0)
LAST = dict(focal_levels=1, focal_window=5, overlap=True, norm_last=True)
THEIRS = dict(focal_levels=(1, 1), focal_windows=(5, 5), use_overlap_down=True, use_post_norm=True)
THEIRS |= dict(use_post_norm_in_modulation=True, layerscale_value=1.0)
MAKER = "timm.models.focalnet:FocalNet"

CASES = {
    "focalnet": Case("focalnet_tiny_srf", SMALL, "timm:focalnet_tiny_srf", SMALL, size=(26, 20), maker=MAKER),
    "focalnet_last": Case(
        "focalnet_tiny_srf",
        SMALL | LAST | dict(norm_modulated=True, layer_scale_init=1.0),
        "timm:focalnet_tiny_srf",
        SMALL | THEIRS,
        size=(26, 20),
        maker=MAKER,
    ),
}
