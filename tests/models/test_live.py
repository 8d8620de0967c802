"""The references themselves, built at full published size: values in float32 and the way back. `pytest -m parity`."""

import functools

import jax
import numpy as np
import pytest

import golden
import manifests
import vision_jax as vj
from vision_jax.registry import family_of
from vision_jax.weights.convert import dialects

pytestmark = pytest.mark.parity

CHAOTIC = ("halonet_h1",)  # so filled, the reference's own float32 is 9 % from its float64
WIDE = ("levit_128s",)  # so filled, this one's is 0.06 % from it: compared in float64
SMALLEST = {
    family: min(
        sorted(manifests.load(family).keys() - CHAOTIC),
        key=lambda name: (vj.model_info(name).reference != "timm", vj.model_info(name).params),
    )
    for family in manifests.packaged()
}


@pytest.mark.parametrize("name", SMALLEST.values(), ids=SMALLEST)
def test_full_size(name, reference):
    info, torch = vj.model_info(name), reference("torch")
    module = "timm" if info.reference == "timm" else f"references.{family_of(name)}"
    theirs = reference(module).create_model(name)
    state = theirs.state_dict()
    with torch.no_grad():
        for key, leaf in state.items():
            if leaf.is_floating_point() and not golden.STATISTICS.search(key):
                leaf.copy_(torch.from_numpy(golden.fill(key, tuple(leaf.shape))))
    size = info.config.img_size if isinstance(info.config.img_size, tuple) else (info.config.img_size,) * 2
    images = golden.images(size)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        for module in theirs.modules():  # batch statistics that let the images show
            if getattr(module, "running_mean", None) is not None:
                module.momentum = 1.0
        theirs.train()(pixels)
        if name in WIDE:
            theirs, pixels = theirs.double(), pixels.double()
        expected = theirs.eval()(pixels)
        expected = getattr(expected, "logits", expected).numpy()  # transformers wraps them
    model = vj.load_weights(vj.create_model(name, abstract=True, dtype=expected.dtype), state)
    static, variables = vj.split(model)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, expected.dtype), variables)
    with jax.enable_x64(name in WIDE):
        ours, _ = jax.jit(functools.partial(vj.apply, static))(variables, images)
    assert golden.rounding(ours, expected) < (1e-9 if name in WIDE else 1e-4)
    back = vj.state_dict(model, next(iter(dialects(model))))
    for key, leaf in state.items():
        if leaf.is_floating_point():
            np.testing.assert_array_equal(back[key], leaf.numpy(), err_msg=key)
