"""Deployed models next to the references' own merged forms, at full size. `pytest -m parity`."""

import math

import jax
import pytest
from flax import nnx

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity


def merge(model):
    """Next-ViT's blocks merge one by one."""
    for module in model.modules():
        getattr(module, "reparameterize", lambda: None)()


MERGE = {"shvit_s1": lambda model: model.fuse(), "nextvit_small": merge}


@pytest.mark.parametrize("name", MERGE)
def test_equal_to_timm(name, reference):
    timm, torch = reference("timm"), reference("torch")
    torch.manual_seed(0)
    theirs, images = timm.create_model(name), golden.images((224, 224), count=8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        for module in theirs.modules():  # norms that are none of them the identity
            if getattr(module, "running_mean", None) is not None:
                module.momentum = 1.0
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        theirs.train()(pixels)
        weights = {key: leaf.clone() for key, leaf in theirs.eval().state_dict().items()}
        trained = theirs(pixels).numpy()
        MERGE[name](theirs)
        deployed = theirs(pixels).numpy()
    assert golden.rounding(deployed, trained) < 1e-5
    model = vj.load_weights(vj.create_model(name, abstract=True), weights).reparameterize()
    assert golden.rounding(vj.jit(model)(images), deployed) < 1e-5
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count <= sum(leaf.numel() for leaf in theirs.parameters())
