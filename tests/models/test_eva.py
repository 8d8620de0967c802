"""What training does to the places of EVA's descendants; for their values see the goldens."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden
import vision_jax as vj
from golden_cases import CASES, filled
from vision_jax.errors import InputError
from vision_jax.layers.rotary import Rotary
from vision_jax.models.eva import model as eva


def made(key, **fields):
    """A golden's model with its weights, and images."""
    case, (arrays, record) = CASES[key], golden.load(key)
    case = dataclasses.replace(case, fields={**case.fields, **fields})
    return filled(case, record, arrays), golden.images(case.size)


def trained(model, images, key=0):
    """What a model gives in training."""
    static, variables = vj.split(model)
    return vj.apply(static, variables, images, train=True, key=jax.random.key(key))[0]


@pytest.mark.heavy
@pytest.mark.parametrize("scan_blocks", [False, True])
@pytest.mark.parametrize("key", ["sapiens2", "dinov3"])
def test_training_rescales_the_places_in_every_block(monkeypatch, key, scan_blocks):
    model, images = made(key, rotary_rescale=2.0, scan_blocks=scan_blocks)
    assert golden.error(trained(model, images), trained(model, images, 1)) > 1e-3
    unchanged = vj.jit(model)(images)
    with monkeypatch.context() as patch:
        patch.setattr(eva, "random_factor", lambda train, most: jnp.float32(0.75 * most))
        ours = trained(model, images)
    turn = Rotary.__call__
    monkeypatch.setattr(Rotary, "__call__", lambda self, x: turn(self, x, 1.5))
    wanted = vj.jit(model)(images)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    assert golden.error(unchanged, wanted) > 1e-3


@pytest.mark.heavy
def test_dinov3_is_not_rescaled_unless_it_is_asked_for():
    model, images = made("dinov3")
    assert model.config.rotary_rescale == 1
    np.testing.assert_array_equal(trained(model, images), trained(model, images, 1))


def test_what_cannot_be_rescaled():
    for name, most, said in (
        ("vit_small_patch16_dinov3", 0.5, "rotary_rescale=0.5: 1 or more"),
        ("vit_small_patch16_rope_224", 2, "rotary_rescale=2 is for rotary='centred'"),
    ):
        with pytest.raises(InputError, match=said):
            vj.create_model(name, abstract=True, rotary_rescale=most)


@pytest.mark.parity
def test_rescaled_places_equal_timm(reference, monkeypatch):
    """In training, both models given the number that timm draws."""
    torch, case, (_, record) = reference("torch"), CASES["sapiens2"], golden.load("sapiens2")
    model, images = made("sapiens2", rotary_rescale=2.0)
    name, kwargs = case.theirs.removeprefix("timm:"), {**case.kwargs, "rope_rescale_coords": 2.0}
    theirs = reference("timm").create_model(name, **kwargs).train()
    with torch.no_grad():
        for key, leaf in theirs.state_dict().items():
            leaf.copy_(torch.from_numpy(golden.fill(key, tuple(leaf.shape), record["gain"])))
        inputs, found = torch.from_numpy(images).permute(0, 3, 1, 2), []
        for seed in (0, 1):
            torch.manual_seed(seed)
            wanted = theirs(inputs).numpy()
            torch.manual_seed(seed)
            factor = torch.empty(1).uniform_(-math.log(2), math.log(2)).exp().item()
            monkeypatch.setattr(eva, "random_factor", lambda train, most, factor=factor: jnp.float32(factor))
            found.append(trained(model, images))
            np.testing.assert_allclose(found[-1], wanted, rtol=1e-4, atol=1e-5)
    assert golden.error(*found) > 1e-3
