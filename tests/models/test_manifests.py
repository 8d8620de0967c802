"""Every registered variant against its reference's manifest: names, shapes, counts, multiply-adds, preprocessing."""

import functools
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import linear_attention

import manifests
import vision_jax as vj
from vision_jax.layers.conv import pair
from vision_jax.registry import family_of
from vision_jax.tools.cost import count_cost
from vision_jax.weights.convert import dialect, dialects, entries

VARIANTS = [(family_of(name), name) for name in vj.list_models()]


@pytest.mark.parametrize("family", sorted({family for family, _ in VARIANTS}))
def test_every_variant_has_its_manifest(family):
    assert sorted(manifests.load(family)) == [name for f, name in VARIANTS if f == family]


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "name"), VARIANTS, ids=lambda value: value)
def test_variant(family, name):
    theirs, info = manifests.load(family)[name], vj.model_info(name)
    # the authors' files hold the MLPs as linear maps, the reference here as timm's do
    stored = {} if family != "metaformer" or info.reference == "timm" else {"conv_mlp": True}
    model = vj.create_model(name, abstract=True, **stored)
    ours = {}
    for entry in entries(model, dialect(model, next(iter(dialects(model))))):
        ours |= dict(zip(entry.names, map(list, entry.reference_shapes), strict=True))
    ignored = getattr(type(model), "torch_ignore", ())
    assert ours == {n: s for n, s in theirs["shapes"].items() if not any(re.search(pattern, n) for pattern in ignored)}
    assert info.params == theirs["params"]
    assert list(pair(info.config.img_size)) == theirs["img_size"]
    if "tags" not in theirs:
        return
    assert (info.default_tag, sorted(info.tags)) == (theirs["default_tag"], sorted(theirs["tags"] or [""]))
    for tag, said in theirs["tags"].items():
        pretrained = info.tags[tag]
        for key in ("interpolation", "num_classes", "crop_mode"):
            assert getattr(pretrained, key) == said.get(key, "center"), f"{tag}: {key}"
        for key in ("mean", "std", "crop_pct"):
            np.testing.assert_allclose(getattr(pretrained, key), said[key], rtol=1e-6, err_msg=f"{tag}: {key}")
        assert pair(pretrained.img_size)[0] == said["img_size"], tag
        assert pretrained.url == said.get("url", pretrained.url)


def as_many_products_as_neighbors(q, k, v, *, kernel_size, **options):
    """What `neighborhood_attention` is defined by; its XLA path multiplies whole tiles, and masks what is no neighbor.

    The reference's counter sees a stand-in that gathers each query's neighbors.
    """
    k, v = (jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], math.prod(kernel_size), x.shape[-1])) for x in (k, v))
    return jnp.einsum("...k,...kd->...d", jnp.einsum("...d,...kd->...k", q, k), v)


def as_a_product(seen, kernels):
    """What `weighted_taps` is by elementwise arithmetic, which no counter sees."""
    return jnp.einsum("tbhwc,btc->bhwc", jnp.stack(seen), kernels)


# Operators whose products depend on how they are cut: for counting, in the form that the reference was counted in.
COUNTED_AS = {
    "efficientnet": ("vision_jax.layers.cond_conv.weighted_taps", as_a_product),
    "nat": ("vision_jax.layers.neighborhood.neighborhood_attention", as_many_products_as_neighbors),
    # the authors' mode "recurrent": token by token
    "vir": ("vision_jax.models.vir.linear_attention", functools.partial(linear_attention, chunk_size=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), VARIANTS, ids=lambda value: value)
def test_multiply_adds(family, name, monkeypatch):
    """Counted with scanned blocks, where a family has them: one body a stage is traced. No counter sees transforms."""
    if family in COUNTED_AS:
        monkeypatch.setattr(*COUNTED_AS[family])
    scanned = {"scan_blocks": True} if hasattr(vj.model_info(name).config, "scan_blocks") else {}
    counted = count_cost(vj.create_model(name, abstract=True, **scanned)).macs
    assert counted == pytest.approx(manifests.load(family)[name]["macs"], rel=1e-3)
