"""SAM's image encoder at another image size, the authors' names and transformers' files, live."""

import numpy as np
import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity

DIMS = dict(img_size=48, patch_size=8, embed_dim=24, num_heads=3, window_size=4, neck_chans=8)
OURS, TIMM = dict(DIMS, depth=2, global_every=2), dict(DIMS, depth=2, global_attn_indexes=(1,))


def filled(torch, model):
    """A torch module whose leaves all show, in evaluation mode."""
    with torch.no_grad():
        for name, leaf in model.state_dict().items():
            leaf.copy_(torch.from_numpy(golden.fill(name, tuple(leaf.shape))))
    return model.eval()


def assert_equal(torch, ours, theirs, images):
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    wanted = getattr(wanted, "last_hidden_state", wanted).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(vj.jit(ours)(images, method="forward_features"), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 40), (24, 56)])
def test_another_resolution_equals_timm(reference, size):
    """timm resamples its tables at every call."""
    torch = reference("torch")
    theirs = filled(torch, reference("timm").create_model("samvit_base_patch16", **TIMM))
    ours = vj.create_model("samvit_base_patch16", abstract=True, **{**OURS, "img_size": size})
    ours = vj.load_weights(ours, theirs.state_dict())
    assert_equal(torch, ours, theirs.forward_features, golden.images(size))


def test_official_names(reference):
    """timm's own reader of the authors' files turns them into its names, and leaves out the mask decoder as we do."""
    read = reference("timm.models.vision_transformer_sam").checkpoint_filter_fn
    model = vj.create_model("samvit_base_patch16", **OURS)
    official, wanted = vj.state_dict(model, "official"), vj.state_dict(model, "timm")
    assert {"image_encoder.neck.2.weight", "image_encoder.blocks.1.mlp.lin2.bias"} <= official.keys()
    official["mask_decoder.iou_token.weight"] = np.zeros((1, 8))
    found = read(official, None)
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)
    again = vj.load_weights(vj.create_model("samvit_base_patch16", abstract=True, **OURS), official)
    assert all((value == wanted[name]).all() for name, value in vj.state_dict(again, "timm").items())


def test_transformers_files(reference, tmp_path):
    transformers, torch = reference("transformers"), reference("torch")
    config = transformers.SamVisionConfig(
        hidden_size=24, output_channels=8, num_hidden_layers=2, num_attention_heads=3, image_size=48, patch_size=8,
        window_size=4, global_attn_indexes=[1], mlp_dim=96, layer_norm_eps=1e-5,
    )  # fmt: skip
    theirs = filled(torch, transformers.SamVisionModel(config))
    theirs.save_pretrained(tmp_path)
    ours = vj.load_weights(vj.create_model("samvit_base_patch16", abstract=True, **OURS), tmp_path)
    assert_equal(torch, ours, theirs, golden.images((48, 48)))
    given = vj.state_dict(ours, "hf")
    assert given.keys() == theirs.state_dict().keys()
    for name, leaf in theirs.state_dict().items():
        np.testing.assert_array_equal(given[name], leaf.numpy(), err_msg=name)
