"""PVT and PVT v2 against transformers and timm, live: files both ways, another resolution."""

import jax
import numpy as np
import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity


def randomise(torch, model):
    for name, leaf in model.state_dict().items():  # detached: written in place
        leaf.copy_(torch.from_numpy(golden.fill(name, tuple(leaf.shape))))
    return model.eval()


def logits(torch, model, images):
    with torch.no_grad():
        out = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    return getattr(out, "logits", out).numpy()


def agree(ours, theirs, images, torch):
    wanted = logits(torch, theirs, images)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2 * wanted.std()
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
def test_pvt_v2_any_size_and_back(reference, name):
    torch = reference("torch")
    theirs = randomise(torch, reference("timm").create_model(name))
    ours = vj.load_weights(vj.create_model(name, abstract=True), theirs.state_dict())
    agree(ours, theirs, golden.images((160, 136)), torch)
    for leaf, value in vj.state_dict(ours).items():
        assert torch.equal(theirs.state_dict()[leaf], torch.from_numpy(value)), leaf


def pvt(reference, size):
    return reference("references.pvt").create_model("pvt_tiny", image_size=size)


def test_pvt_and_back(reference):
    torch, theirs = reference("torch"), pvt(reference, 96)
    randomise(torch, theirs)
    ours = vj.load_weights(vj.create_model("pvt_tiny", abstract=True, img_size=96), theirs.state_dict())
    agree(ours, theirs, golden.images((96, 96)), torch)
    for leaf, value in vj.state_dict(ours, "hf").items():
        assert torch.equal(theirs.state_dict()[leaf], torch.from_numpy(value)), leaf
    official = vj.state_dict(ours, "official")
    assert {"cls_token", "pos_embed4", "patch_embed1.proj.weight", "block2.1.attn.kv.bias", "norm.bias"} <= set(
        official
    )
    again = vj.load_weights(vj.create_model("pvt_tiny", abstract=True, img_size=96), official)
    assert jax.tree.all(jax.tree.map(np.array_equal, vj.split(again)[1], vj.split(ours)[1]))


@pytest.mark.parametrize("size", [128, 64])
def test_pvt_at_another_resolution(reference, size):
    """The positions as the official code interpolates them at every call."""
    torch, source, theirs = reference("torch"), pvt(reference, 96), pvt(reference, size)
    weights = randomise(torch, source).state_dict()
    resized = dict(weights)
    for i in range(4):
        name, prefix = f"pvt.encoder.patch_embeddings.{i}.position_embeddings", int(i == 3)
        old, new = 96 // 4 // 2**i, size // 4 // 2**i
        table = weights[name][:, prefix:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        table = torch.nn.functional.interpolate(table, size=(new, new), mode="bilinear").flatten(2).transpose(1, 2)
        resized[name] = torch.cat([weights[name][:, :prefix], table], dim=1)
    theirs.load_state_dict(resized)
    ours = vj.load_weights(vj.create_model("pvt_tiny", abstract=True, img_size=size), weights)
    agree(ours, theirs.eval(), golden.images((size, size)), torch)
