"""TinyViT's weights for windows of another size, as timm resizes them. `pytest -m parity`."""

import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity

SMALL = dict(depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2), num_classes=7)


@pytest.mark.parametrize("window", [3, 6])
def test_other_windows(window, reference):
    timm, torch = reference("timm"), reference("torch")
    theirs, larger = (timm.create_model("tiny_vit_5m_224", **SMALL, window_sizes=(n, n)) for n in (4, window))
    with torch.no_grad():
        for name, leaf in theirs.named_parameters():
            if name.endswith("attention_biases"):
                leaf.normal_()
    state, images = theirs.state_dict(), golden.images((48, 48))
    larger.load_state_dict(reference("timm.models.tiny_vit").checkpoint_filter_fn(dict(state), larger))
    with torch.no_grad():
        expected = larger.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    model = vj.create_model("tiny_vit_5m_224", abstract=True, **SMALL, img_size=48, window_sizes=(window, window))
    assert golden.rounding(vj.jit(vj.load_weights(model, state))(images), expected) < 1e-5
