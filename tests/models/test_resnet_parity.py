"""Every published ResNet against timm: names, shapes, counts, and how its weights were preprocessed for."""

import pytest

import vision_jax as vj
from vision_jax.registry import list_models, model_info
from vision_jax.weights.convert import dialect, entries

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def timm(reference):
    return reference("timm")


@pytest.mark.parametrize("name", list_models(family="resnet"))
def test_variant(name, timm, reference):
    with reference("torch").device("meta"):
        theirs = timm.create_model(name)
    ours = entries(vj.create_model(name, abstract=True), dialect(vj.create_model(name, abstract=True), "timm"))
    shapes = {key: shape for entry in ours for key, shape in zip(entry.names, entry.reference_shapes, strict=True)}
    assert shapes == {key: tuple(leaf.shape) for key, leaf in theirs.state_dict().items() if leaf.is_floating_point()}
    assert model_info(name).params == sum(leaf.numel() for leaf in theirs.parameters())


@pytest.mark.parametrize("name", list_models(family="resnet"))
def test_published_weights(name, timm):
    info = model_info(name)
    known = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
    assert set(info.tags) == set(known or ("",))
    if known:
        assert info.default_tag == timm.get_pretrained_cfg(name).tag
    for tag in known:
        theirs, ours = timm.get_pretrained_cfg(f"{name}.{tag}"), info.tags[tag]
        assert ours.img_size == theirs.input_size[-1]
        assert (ours.hub, ours.licence) == (theirs.hf_hub_id, theirs.license or "")
        for field in ("num_classes", "mean", "std", "crop_pct", "interpolation"):
            assert getattr(ours, field) == getattr(theirs, field), (tag, field)
