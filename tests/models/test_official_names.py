"""Official names against timm's own readers of the authors' files, which turn them into its names."""

import pytest

import vision_jax as vj

pytestmark = pytest.mark.parity

CASES = {  # module -> (model, timm's fields, ours, some official names)
    "xcit": (
        "xcit_tiny_12_p8_224",
        dict(embed_dim=16, depth=1, num_heads=4),
        dict(embed_dim=16, depth=1, num_heads=4),
        {"pos_embeder.token_projection.weight", "cls_attn_blocks.0.attn.qkv.bias"},
    ),
    "pit": (
        "pit_ti_distilled_224",
        dict(depth=(1, 1), heads=(2, 4), base_dims=(4, 4)),
        dict(depths=(1, 1), num_heads=(2, 4), head_dim=4),
        {"pools.0.conv.weight", "transformers.1.blocks.0.attn.qkv.weight"},
    ),
    "hiera": (
        "hiera_tiny_224",
        dict(stages=(1, 1, 1, 1), embed_dim=8),
        dict(depths=(1, 1, 1, 1), embed_dim=8),
        {"head.projection.weight", "norm.bias"},
    ),
}


@pytest.mark.parametrize("module", CASES)
def test_official_names(reference, module):
    (name, fields, ours, some), torch = CASES[module], reference("torch")
    theirs = reference("timm").create_model(name, num_classes=7, **fields)
    model = vj.create_model(name, num_classes=7, **ours)
    official = {key: torch.from_numpy(value) for key, value in vj.state_dict(model, "official").items()}
    assert some <= official.keys()
    found = reference(f"timm.models.{module}").checkpoint_filter_fn(official, theirs)
    wanted = vj.state_dict(model, "timm")
    assert found.keys() == wanted.keys() == theirs.state_dict().keys()
    assert all((found[key].numpy() == wanted[key]).all() for key in wanted)
