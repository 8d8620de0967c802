"""XCiT's official names: timm's own reader of the authors' files turns them into its names."""

import pytest

import vision_jax as vj

pytestmark = pytest.mark.parity


def test_official_names(reference):
    timm, torch = reference("timm"), reference("torch")
    fields = dict(embed_dim=16, depth=1, num_heads=4, num_classes=7)
    theirs, model = (make("xcit_tiny_12_p8_224", **fields) for make in (timm.create_model, vj.create_model))
    official = {name: torch.from_numpy(value) for name, value in vj.state_dict(model, "official").items()}
    assert {"pos_embeder.token_projection.weight", "cls_attn_blocks.0.attn.qkv.bias"} <= official.keys()
    found, wanted = reference("timm.models.xcit").checkpoint_filter_fn(official, theirs), vj.state_dict(model, "timm")
    assert found.keys() == wanted.keys()
    assert all((found[name].numpy() == wanted[name]).all() for name in wanted)
