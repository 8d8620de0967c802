"""MaxViT and CoAtNet against timm, live: another resolution, where windows and their tables change."""

import numpy as np
import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity
NAMES = ["maxvit_tiny_tf_224", "maxvit_nano_rw_256", "maxvit_rmlp_pico_rw_256", "coatnet_pico_rw_224"]


@pytest.mark.parametrize("size", [192, (96, 160)])
@pytest.mark.parametrize("name", NAMES)
def test_another_resolution_equals_timm(reference, name, size):
    timm, torch = reference("timm"), reference("torch")
    resized = reference("timm.models.maxxvit").checkpoint_filter_fn
    source, theirs = timm.create_model(name, img_size=128), timm.create_model(name, img_size=size)
    weights = source.state_dict()
    for key, leaf in weights.items():
        if leaf.is_floating_point() and not golden.STATISTICS.search(key):
            leaf.copy_(torch.from_numpy(golden.fill(key, tuple(leaf.shape))))
    theirs.load_state_dict(resized(dict(weights), theirs))
    ours = vj.load_weights(vj.create_model(name, abstract=True, img_size=size), weights)
    images = golden.images(size if isinstance(size, tuple) else (size, size), count=2)
    with torch.no_grad():
        wanted = theirs.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2 * wanted.std()
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=1e-4)
