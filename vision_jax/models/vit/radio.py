"""C-RADIO: AM-RADIO: Agglomerative Vision Foundation Model (Ranzinger et al., 2024, arXiv:2312.06709), its later ones.

Plain ViTs that learned what several teachers see, a class token for each of them; all but the first stand with the
registers here, and the last tokens are not normalised. Version 3: RADIOv2.5 (Heinrich et al., 2025, arXiv:2412.07679);
version 4: arXiv:2601.17237. Official repository: NVlabs/RADIO, whose models have positions for 128 x 128 patches and
cut them to the image; here as in timm, whose files have them for one size.
"""

import dataclasses
import functools
from typing import ClassVar

from vision_jax.layers.interpolate import bilinear
from vision_jax.layers.resample import resample_positions
from vision_jax.models.vit.model import VisionTransformer, ViTConfig
from vision_jax.models.vit.rows import register_rows
from vision_jax.registry import CLIP_MEAN, CLIP_STD


@dataclasses.dataclass(frozen=True)
class RadioConfig(ViTConfig):
    """A C-RADIO.

    Attributes:
      align_corners: at another image size, positions are interpolated from corner to corner.
    """

    align_corners: bool = False


class Radio(VisionTransformer):
    """Images [B, H, W, C] -> features [B, C], or logits."""

    torch_names: ClassVar = {"timm": ()}
    linen_names: ClassVar = {}

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        if leaf != "pos_embed":
            return array
        method = functools.partial(bilinear, align_corners=self.config.align_corners)
        return resample_positions(array, self.grid, self.placed, method)


_GIANT = dict(embed_dim=1536, num_heads=24, mlp_ratio=4.0)
_V3 = dict(paper="2412.07679", reg_tokens=7)
_V4 = dict(paper="2601.17237", reg_tokens=9)
for rows, version in (
    (
        (  # multiply-adds as counted here
            ("vit_base_patch16_radio_v3", 86_456_064, 107.89, dict(layer_scale_init=1e-5, align_corners=True)),
            ("vit_large_patch16_radio_v3", 304_202_752, 364.81, dict(layer_scale_init=1e-5)),
            ("vit_huge_patch16_radio_v3", 631_983_360, 737.53, dict(align_corners=True)),
            ("vit_giant_patch16_radio_v3", 1_136_027_136, 1300.78, _GIANT),
        ),
        _V3,
    ),
    (
        (
            ("vit_so400m_patch16_radio_v4", 413_543_664, 492.46, {}),
            ("vit_huge_patch16_radio_v4", 631_985_920, 739.13, {}),
        ),
        _V4,
    ),
):
    register_rows(
        [(name, params, gmacs, "c_radio", own) for name, params, gmacs, own in rows], model=Radio, config=RadioConfig,
        img_size=512, no_embed_class=True, final_norm=False, num_classes=0, crop_pct=1.0,
        licence="nvidia-open-model-license", mean=CLIP_MEAN, std=CLIP_STD, **version,
    )  # fmt: skip
