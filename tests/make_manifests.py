"""Records every registered variant's reference: `python tests/make_manifests.py [FAMILY ...]`, all families by default.

Built on torch's meta device, so nothing is computed: names and shapes, multiply-adds by torch's own counter, and what
the published weights expect of an image. Needs the [parity] extra; see make_goldens.py for VISION_JAX_PARITY_PREIMPORT.
"""

import contextlib
import importlib
import os
import sys

if first := os.environ.get("VISION_JAX_PARITY_PREIMPORT"):
    importlib.import_module(first)

import torch
from torch.utils.flop_counter import FlopCounterMode

import manifests
import vision_jax as vj
from vision_jax.registry import family_of


def timm_variant(name):
    """What timm says of a variant."""
    import timm
    from timm.models import get_pretrained_cfg, list_pretrained

    with torch.device("meta"), _linspace_on_host():
        model = timm.create_model(name).eval().requires_grad_(False)
    cfgs = {tag.partition(".")[2]: get_pretrained_cfg(tag) for tag in list_pretrained(f"{name}.*")}
    default = get_pretrained_cfg(name)
    size = default.input_size
    with _lookups_uncounted(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes")
    return {
        "shapes": {n: list(leaf.shape) for n, leaf in model.state_dict().items() if leaf.is_floating_point()},
        "params": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2,
        "img_size": list(size[1:]),
        "default_tag": default.tag if cfgs else "",  # timm calls the absence of weights "untrained"
        "tags": {tag: {**{k: getattr(c, k) for k in keys}, "img_size": c.input_size[1]} for tag, c in cfgs.items()},
    }


@contextlib.contextmanager
def _linspace_on_host():
    """Drop-path schedules read their values while the model is built, which the meta device does not have."""
    linspace = torch.linspace
    torch.linspace = lambda *args, **kwargs: linspace(*args, **{**kwargs, "device": kwargs.get("device") or "cpu"})
    try:
        yield
    finally:
        torch.linspace = linspace


@contextlib.contextmanager
def _lookups_uncounted():
    """MaxViT's biases are looked up by products with one-hot tables there: a hundredth of all; ours cost none."""
    module = importlib.import_module("timm.layers.pos_embed_rel")
    lookup = module.reindex_2d_einsum_lookup
    module.reindex_2d_einsum_lookup = lambda table, h, w, *_: table.new_empty(len(table), h * w, h * w)
    try:
        yield
    finally:
        module.reindex_2d_einsum_lookup = lookup


if __name__ == "__main__":
    families = sys.argv[1:] or sorted({family_of(name) for name in vj.list_models()})
    for family in families:
        names = [n for n in vj.list_models(family=family) if vj.model_info(n).reference == "timm"]
        manifests.save(family, {name: timm_variant(name) for name in names})
        print(f"{family}: {len(names)} variants, {manifests.path(family).stat().st_size / 1024:.0f} kB")
