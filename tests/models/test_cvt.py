"""CvT beside its golden: every published variant, the official activation, names of both codes."""

import numpy as np
import pytest

import golden
import vision_jax as vj
from vision_jax.registry import list_models, model_info
from vision_jax.weights.convert import dialect, entries

VARIANTS = list_models(family="cvt")


def theirs(reference, name, **kwargs):
    """transformers' model of a variant's size."""
    transformers, c = reference("transformers"), model_info(name).config
    fields = dict(depth=list(c.depths), embed_dim=list(c.embed_dims), num_heads=list(c.num_heads), num_labels=1000)
    return transformers.CvtForImageClassification(transformers.CvtConfig(**{**fields, **kwargs}))


def shapes(name, names):
    model = vj.create_model(name, abstract=True)
    found = entries(model, dialect(model, names))
    return {key: shape for entry in found for key, shape in zip(entry.names, entry.reference_shapes, strict=True)}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters(name):
    params = {key: shape for key, shape in shapes(name, "hf").items() if not golden.STATISTICS.search(key)}
    assert sum(np.prod(shape) for shape in params.values()) == model_info(name).params


def test_names_of_the_authors_code():
    official = shapes("cvt_13", "official")
    assert official["stage0.patch_embed.proj.weight"] == (64, 3, 7, 7)
    assert official["stage1.blocks.1.attn.conv_proj_k.conv.weight"] == (192, 1, 3, 3)
    assert official["stage1.blocks.1.attn.conv_proj_k.bn.running_var"] == (192,)
    assert official["stage2.blocks.9.attn.proj_v.weight"] == (384, 384)
    assert official["stage2.cls_token"] == (1, 1, 384)


def test_bad_fields_are_named():
    with pytest.raises(vj.InputError, match="act='relu'"):
        vj.create_model("cvt_13", act="relu")
    with pytest.raises(vj.InputError, match="depths"):
        vj.create_model("cvt_13", depths=(1, 2))
    with pytest.raises(vj.InputError, match="num_heads"):
        vj.create_model("cvt_13", num_heads=(1, 3, 7))


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes(name, reference):
    with reference("torch").device("meta"):
        state = theirs(reference, name).state_dict()
    assert shapes(name, "hf") == {key: tuple(leaf.shape) for key, leaf in state.items() if leaf.is_floating_point()}


@pytest.mark.parity
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_full_size(act, reference):
    torch = reference("torch")

    class QuickGELU(torch.nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    model = theirs(reference, "cvt_13")
    for module in list(model.modules()):
        if act == "quick_gelu" and hasattr(module, "activation"):
            module.activation = QuickGELU()
        if getattr(module, "running_mean", None) is not None:
            module.momentum = 1.0
    state, images = model.state_dict(), golden.images((224, 224))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        for key, leaf in state.items():
            if leaf.is_floating_point() and not golden.STATISTICS.search(key):
                leaf.copy_(torch.from_numpy(golden.fill(key, tuple(leaf.shape))))
        model.train()(pixels)
        expected = model.eval()(pixels).logits.numpy()
    ours = vj.load_weights(vj.create_model("cvt_13", abstract=True, act=act), state)
    assert golden.rounding(vj.jit(ours)(images), expected) < 1e-4
    back = vj.state_dict(ours, "hf")
    for key, leaf in state.items():
        if leaf.is_floating_point():
            np.testing.assert_array_equal(back[key], leaf.numpy(), err_msg=key)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()}, strict=True)
