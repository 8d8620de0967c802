"""timm's ViTamin with a stem of any size, from plain arguments."""

import timm
from timm.models.vitamin import VitCfg


def network(stem_dims, stem_depths, **kwargs):
    """A `vitamin_small_224` of `kwargs`, its stem of these channels and blocks."""
    stem = VitCfg(embed_dim=(*stem_dims, kwargs["embed_dim"]), depths=(*stem_depths, 1), stem_width=stem_dims[0])
    return timm.create_model("vitamin_small_224", embed_cfg=stem, **kwargs)
