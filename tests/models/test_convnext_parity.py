"""ConvNeXt's other dialects, live: transformers' weights, and Meta's names through timm's own converter."""

import numpy as np
import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity

FIELDS = dict(depths=(1, 1, 2, 1), embed_dims=(8, 12, 16, 24), num_classes=7)


def filled(torch, module):
    with torch.no_grad():
        for name, leaf in module.state_dict().items():
            leaf.copy_(torch.from_numpy(golden.fill(name, tuple(leaf.shape))))
    return module.eval()


def test_transformers(reference):
    transformers, torch = reference("transformers"), reference("torch")
    config = transformers.ConvNextConfig(
        depths=list(FIELDS["depths"]), hidden_sizes=list(FIELDS["embed_dims"]), num_labels=7
    )
    theirs = filled(torch, transformers.ConvNextForImageClassification(config))
    # its last norm has an epsilon of 1e-12, the official code's and timm's of 1e-6: 1e-5 tells no difference
    ours = vj.load_weights(vj.create_model("convnext_tiny", abstract=True, **FIELDS), theirs.state_dict())
    images = golden.images((64, 96))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()
    assert golden.error(vj.jit(ours)(images), wanted) < 1e-4
    back = vj.state_dict(ours, "hf")
    assert back.keys() == theirs.state_dict().keys()


def test_official_names(reference):
    timm, torch = reference("timm"), reference("torch")
    convert = reference("timm.models.convnext").checkpoint_filter_fn
    ours = vj.create_model("convnext_tiny", **FIELDS)
    theirs = timm.create_model("convnext_tiny", depths=FIELDS["depths"], dims=FIELDS["embed_dims"], num_classes=7)
    official = {name: torch.from_numpy(leaf) for name, leaf in vj.state_dict(ours, "official").items()}
    theirs.load_state_dict(convert(official, theirs), strict=True)
    for name, leaf in vj.state_dict(ours, "timm").items():
        np.testing.assert_array_equal(theirs.state_dict()[name].numpy(), leaf)
