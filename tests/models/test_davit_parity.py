"""DaViT's official names: timm's own reader of the authors' files turns them into its names."""

import pytest

import vision_jax as vj

pytestmark = pytest.mark.parity


def test_official_names(reference):
    read = reference("timm.models.davit").checkpoint_filter_fn
    model = vj.create_model("davit_tiny", depths=(1, 2), embed_dims=(8, 16), num_heads=(2, 4), num_classes=7)
    official, wanted = vj.state_dict(model, "official"), vj.state_dict(model, "timm")
    assert "main_blocks.1.1.0.cpe.1.proj.weight" in official
    found = read(official, None)
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)
