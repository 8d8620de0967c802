"""Records every registered variant's reference: `python tests/make_manifests.py [FAMILY ...]`.

By default all families but those that no package offers (`manifests.UNPACKAGED`). Built on torch's meta device, so
nothing is computed: names and shapes, multiply-adds by torch's own counter, and what the published weights expect of an
image. Needs the [parity] extra; see make_goldens.py for VISION_JAX_PARITY_PREIMPORT.
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
from vision_jax.layers.conv import pair
from vision_jax.registry import family_of


def variant(name):
    """What its reference says of a variant: timm, or the module in `tests/references` for what timm does not have."""
    info = vj.model_info(name)
    if info.reference == "timm":
        said, module = timm_preprocessing(name), "timm"
    else:
        said, module = {"img_size": pair(info.config.img_size)}, f"references.{family_of(name)}"
    return {**said, **built(module, name, said["img_size"])}


def built(module, name, size):
    """Names and shapes, parameters and multiply-adds of `module.create_model(name)` for images [3, H, W]."""
    with torch.device("meta"), _linspace_on_host():
        model = importlib.import_module(module).create_model(name).eval().requires_grad_(False)
    for layer in model.modules():
        if hasattr(layer, "lambda_q1"):
            layer.fused_attn = False  # one product of the difference with the values, not two
    with _lookups_uncounted(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *size, device="meta"))
    return {
        "shapes": {n: list(leaf.shape) for n, leaf in model.state_dict().items() if leaf.is_floating_point()},
        "params": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2,
    }


def timm_preprocessing(name):
    """What timm's published weights of a variant expect."""
    from timm.models import get_pretrained_cfg, list_pretrained

    cfgs = {tag.partition(".")[2]: get_pretrained_cfg(tag) for tag in list_pretrained(f"{name}.*")}
    default = get_pretrained_cfg(name)
    keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes")
    return {
        "img_size": list(default.input_size[1:]),
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
    """MaxViT's biases are looked up by products with one-hot tables there: a hundredth of all; ours cost none.

    BoTNet's and HaloNet's queries meet every relative position there, also those that no key has, and BAT's matrices
    are those of a few blocks, blown up to the size of the map with zeros. Blurs are convolutions there, here means.
    SAM's windows are projected with their padding there. Swin V2-CR's network sees each pair of tokens there.
    """
    layers = [importlib.import_module(f"timm.layers.{name}") for name in ("bottleneck_attn", "halo_attn")]
    tables = importlib.import_module("timm.layers.pos_embed_rel")
    blur = importlib.import_module("timm.layers.blur_pool").BlurPool2d
    sam = importlib.import_module("timm.models.vision_transformer_sam").Block
    swin = importlib.import_module("timm.models.swin_transformer_v2_cr").WindowMultiHeadAttention
    bat = importlib.import_module("timm.layers.non_local_attn").BilinearAttnTransform
    places = [(module, "rel_logits_1d", _met) for module in layers]
    places.append((tables, "reindex_2d_einsum_lookup", lambda t, h, w, *_: t.new_empty(len(t), h * w, h * w)))
    places += [
        (bat, "forward", _mixed),
        (sam, "forward", _cropped),
        (swin, "_relative_positional_encodings", _of_offsets),
        (blur, "forward", lambda _, x: torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True)),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    try:
        for place in places:
            setattr(*place)
        yield
    finally:
        for place in before:
            setattr(*place)


def _mixed(self, x):
    """As many products as BAT's matrices have elements, in place of its own forward pass."""
    B, C, H, W = x.shape
    n = self.block_size
    pooled = torch.nn.functional.adaptive_max_pool2d(self.conv1(x), (n, 1))
    matrices = [y.new_empty(C, n, n) for y in (self.conv_p(pooled), self.conv_q(pooled.mT))]
    y = matrices[0] @ x.reshape(C, n, H * W // n)
    y = y.reshape(C, H * W // n, n) @ matrices[1]
    return self.conv2(y.reshape(B, C, H, W))


def _cropped(self, x):
    """A block of SAM that cuts the padding of its windows before their projection, in place of its own forward pass."""
    module, attn, proj, y = sys.modules[type(self).__module__], self.attn, self.attn.proj, self.norm1(x)
    attn.proj = torch.nn.Identity()
    if self.window_size:
        y, padded = module.window_partition(y, self.window_size)
        y = module.window_unpartition(attn(y), self.window_size, x.shape[1:3], padded)
    else:
        y = attn(y)
    attn.proj = proj
    x = x + proj(y)
    return x + self.mlp(self.norm2(x))


def _of_offsets(self):
    """What the scores of a window gain, of the network's values for each offset, in place of the reference's own."""
    (h, w), like = self.window_size, self.relative_coordinates_log
    self.meta_mlp(like.new_empty((2 * h - 1) * (2 * w - 1), 2))
    return like.new_empty(1, self.num_heads, h * w, h * w)


def _met(q, table, permute_mask):
    """As many products as there are keys along an axis, in the shape of the reference's."""
    keys = (len(table) + 1) // 2
    B, H, W, _ = q.shape
    scores = (q @ table[:keys].T).reshape(B, H, 1, W, keys)
    return scores.expand(-1, -1, keys, -1, -1).permute(permute_mask)


if __name__ == "__main__":
    families = sys.argv[1:] or sorted({family_of(name) for name in vj.list_models()} - manifests.UNPACKAGED)
    for family in families:
        names = vj.list_models(family=family)
        manifests.save(family, {name: variant(name) for name in names})
        print(f"{family}: {len(names)} variants, {manifests.path(family).stat().st_size / 1024:.0f} kB")
