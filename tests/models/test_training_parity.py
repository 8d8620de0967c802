"""Training next to timm: from the same weights, batches and AdamW the losses stay together. `pytest -m parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vision_jax as vj
from vision_jax.train.optim import make_optimizer

pytestmark = pytest.mark.parity

STEPS, BATCH, CLASSES = 24, 8, 10
MODELS = {  # name -> (image size, what timm is told to switch off)
    "vit_tiny_patch16_224": (64, dict(img_size=64)),
    "swin_tiny_patch4_window7_224": (64, dict(img_size=64, drop_path_rate=0.0)),
    "convnext_atto": (64, dict()),
    "pvt_v2_b0": (64, dict()),
    "mambaout_femto": (64, dict()),
}


def batches(size):
    """Images [B, H, W, C] whose brightness tells their class, and the labels."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        labels = rng.integers(0, CLASSES, BATCH)
        images = rng.standard_normal((BATCH, size, size, 3)) + labels[:, None, None, None] / 5 - 1
        yield images.astype(np.float32), labels


def theirs(torch, model, size):
    """timm's losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05)
    model.train()
    for images, labels in batches(size):
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def ours(model, size):
    """Ours."""
    static, variables = vj.split(model)
    config = {"name": "adamw", "weight_decay": 0.05, "no_decay": ()}
    optimizer = make_optimizer(config, static.shapes["params"], schedule=3e-4)
    state = variables, optimizer.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, images, labels):
        def loss_of(params):
            logits, others = vj.apply(
                static, {**variables, "params": params}, images, train=True, key=jax.random.key(0)
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), others

        (loss, others), grads = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **others}, opt_state, loss

    for images, labels in batches(size):
        *state, loss = step(*state, images, jnp.asarray(labels))
        yield float(loss)


@pytest.mark.parametrize("name", MODELS)
def test_losses_stay_together(name, reference):
    timm, torch = reference("timm"), reference("torch")
    size, kwargs = MODELS[name]
    torch.manual_seed(0)
    their_model = timm.create_model(name, num_classes=CLASSES, **kwargs)
    model = vj.create_model(name, abstract=True, num_classes=CLASSES, img_size=size, drop_path_rate=0.0)
    model = vj.load_weights(model, their_model.state_dict())
    expected, found = list(theirs(torch, their_model, size)), list(ours(model, size))
    assert np.ptp(expected) > 0.1  # there is a curve to follow
    np.testing.assert_allclose(found, expected, atol=1e-4)
