"""TNT at another resolution against timm's own resized model."""

import numpy as np
import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity

FIELDS = dict(img_size=64, embed_dim=24, inner_dim=8, depth=2, num_classes=7)


@pytest.mark.parametrize("size", [(96, 64), (32, 48)])
@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_s_legacy_patch16_224"])
def test_another_resolution_equals_timm(reference, name, size):
    timm, torch = reference("timm"), reference("torch")
    heads = dict(num_heads_outer=3, num_heads_inner=2)
    weights = {
        key: torch.from_numpy(golden.fill(key, tuple(leaf.shape)))
        for key, leaf in timm.create_model(name, **FIELDS, **heads).state_dict().items()
    }
    theirs = timm.create_model(name, **{**FIELDS, "img_size": size}, **heads).eval()
    theirs.load_state_dict(reference("timm.models.tnt").checkpoint_filter_fn(dict(weights), theirs))
    fields = {**FIELDS, "img_size": size, "num_heads": 3, "inner_num_heads": 2}
    ours = vj.load_weights(vj.create_model(name, abstract=True, **fields), weights)
    images = golden.images(size)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=1e-4)
