"""ViTs with other tokens and heads, and what descends from ViT, against timm, live.

Another image size, SigLIP's `.npz` files, DeiT's two heads.
"""

import jax
import numpy as np
import pytest

import golden
import vision_jax as vj

pytestmark = pytest.mark.parity

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
TOKENS = ("vit_wee_patch16_reg1_gap_256", "vit_so150m2_patch16_reg1_gap_256", "vit_giant_patch14_reg4_dinov2",
          "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_siglip_224",
          "vit_xsmall_patch16_clip_224", "aimv2_large_patch14_224", "vit_small_patch16_18x2_224",
          "vit_base_patch16_xp_224", "vit_dlittle_patch16_reg1_gap_256", "vit_pwee_patch16_reg1_gap_256")  # fmt: skip
RELATIVES = {
    "vitamin_small_224": ("vitamin", {"img_size": 32, "depth": 1, "num_classes": 7}),
    "beit_base_patch16_224": ("beit", SMALL),
    "eva_giant_patch14_336": ("eva", SMALL),
    "eva02_tiny_patch14_336": ("eva", SMALL),
    "eva02_large_patch14_clip_336": ("eva", SMALL),
    "eva02_enormous_patch14_clip_224": ("eva", SMALL),
    "vit_mediumd_patch16_rope_reg1_gap_256": ("eva", SMALL),
    "vit_small_patch16_rope_ape_224": ("eva", SMALL),
    "vit_small_patch16_rope_mixed_224": ("eva", SMALL),
    "vit_small_patch16_dinov3": ("eva", SMALL),
    "vit_pe_core_gigantic_patch14_448": ("eva", SMALL),
    "vit_pe_lang_large_patch14_448": ("eva", SMALL),
}


def small(name, **fields):
    """The fields that make a model small."""
    return {**RELATIVES.get(name, ("", SMALL))[1], **fields}


def filled(reference, name, **fields):
    """timm's model, in evaluation mode."""
    torch, model = reference("torch"), reference("timm").create_model(name, **small(name, **fields))
    with torch.no_grad():
        for key, leaf in model.state_dict().items():
            leaf.copy_(torch.from_numpy(golden.fill(key, tuple(leaf.shape))))
    return model.eval()


def assert_equal(reference, ours, theirs, size, tolerance):
    torch, images = reference("torch"), golden.images(size)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert golden.error(wanted[:1], wanted[1:2]) > 1e-2  # it sees the images
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=tolerance)


def _assert_resampled(reference, file, name, size, **options):
    module = reference(f"timm.models.{file}")
    weights = filled(reference, name).state_dict()
    theirs = reference("timm").create_model(name, **small(name, img_size=size)).eval()
    theirs.load_state_dict(module.checkpoint_filter_fn(dict(weights), theirs, **options), strict=True)
    ours = vj.load_weights(vj.create_model(name, abstract=True, **small(name, img_size=size)), weights)
    assert_equal(reference, ours, theirs, size, 1e-4)


@pytest.mark.parametrize("size", [(48, 32), (16, 48)])
@pytest.mark.parametrize("name", [*TOKENS, *RELATIVES])
def test_another_resolution_equals_timm(reference, name, size):
    file = "deit" if name.startswith("deit") else RELATIVES.get(name, ("vision_transformer",))[0]
    _assert_resampled(reference, file, name, size, interpolation="bicubic", antialias=True)


@pytest.mark.parametrize(
    ("name", "corners"), [("vit_base_patch16_radio_v3", True), ("vit_large_patch16_radio_v3", False)]
)
def test_positions_of_radio_equal_timm(reference, name, corners):
    """Its positions are interpolated linearly, those of some from corner to corner."""
    resized = {"interpolation": "bilinear", "antialias": False, "align_corners": corners}
    _assert_resampled(reference, "vision_transformer", name, (48, 32), **resized)


@pytest.mark.parametrize("name", ["vit_relpos_base_patch16_clsgap_224", "vit_srelpos_small_patch16_224"])
def test_relative_positions_equal_timm_at_another_resolution(reference, name):
    _assert_resampled(reference, "vision_transformer_relpos", name, (48, 32))


@pytest.mark.parametrize("name", TOKENS)
def test_round_trip_through_timm(reference, name):
    theirs = filled(reference, name)
    state = vj.state_dict(vj.load_weights(vj.create_model(name, abstract=True, **SMALL), theirs.state_dict()))
    torch = reference("torch")
    theirs.load_state_dict({key: torch.from_numpy(leaf) for key, leaf in state.items()}, strict=True)
    for key, leaf in theirs.state_dict().items():
        np.testing.assert_array_equal(state[key], leaf.numpy(), err_msg=key)


def test_big_vision_file_of_siglip_equals_timm(reference, tmp_path):
    """timm reads the `.npz` that we write and ends up with our weights; so do we."""
    name, torch = "vit_base_patch16_siglip_224", reference("torch")
    source, target = filled(reference, name), reference("timm").create_model(name, **SMALL)
    ours = vj.load_weights(vj.create_model(name, abstract=True, **SMALL), source.state_dict())
    vj.save_weights(ours, tmp_path / "w.npz", names="big_vision")
    target.load_pretrained(str(tmp_path / "w.npz"))
    again = vj.state_dict(vj.load_weights(vj.create_model(name, abstract=True, **SMALL), tmp_path / "w.npz"))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
        np.testing.assert_array_equal(again[key], value.numpy(), err_msg=key)


def test_transformers_files_of_clip(reference, tmp_path):
    """Its image tower as it is saved, and as it lies in memory, both ways; the projection has no bias and stays out."""
    transformers, torch = reference("transformers"), reference("torch")
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8,
        projection_dim=7,
    )  # fmt: skip
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        for key, leaf in theirs.state_dict().items():
            leaf.copy_(torch.from_numpy(golden.fill(key, tuple(leaf.shape))))
    theirs.save_pretrained(tmp_path)
    fields = dict(SMALL, num_classes=0, abstract=True)
    ours = vj.load_weights(vj.create_model("vit_base_patch32_clip_quickgelu_224", **fields), tmp_path, head="skip")
    images = golden.images((32, 32))
    with torch.no_grad():
        wanted = theirs.vision_model(torch.from_numpy(images).permute(0, 3, 1, 2)).pooler_output.numpy()
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=1e-4)
    tower = theirs.vision_model.state_dict()
    for names, prefix in (("hf", "vision_model."), ("hf_modules", "")):
        given = vj.state_dict(ours, names)
        assert given.keys() == {f"{prefix}{key}" for key in tower}
        for key, leaf in tower.items():
            np.testing.assert_array_equal(given[f"{prefix}{key}"], leaf.numpy(), err_msg=key)
    whole = {f"vision_model.{key}": leaf for key, leaf in tower.items()} | {"logit_scale": torch.ones(())}
    whole |= {"text_model.final_layer_norm.bias": torch.ones(3), "vision_model.embeddings.position_ids": torch.ones(1)}
    vj.load_weights(vj.create_model("vit_base_patch32_clip_quickgelu_224", **fields), whole)


def test_two_heads_are_a_pair_while_training_and_averaged_after(reference):
    theirs = filled(reference, "deit_tiny_distilled_patch16_224")
    ours = vj.create_model("deit_tiny_distilled_patch16_224", abstract=True, **SMALL)
    ours = vj.load_weights(ours, theirs.state_dict())
    assert_equal(reference, ours, theirs, (32, 32), 1e-5)
    static, variables = vj.split(ours)
    images = golden.images((32, 32))
    theirs.set_distilled_training()
    torch = reference("torch")
    wanted = theirs.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
    given, _ = vj.apply(static, variables, images, train=True, key=jax.random.key(0))
    for ours, head in zip(given, wanted, strict=True):
        np.testing.assert_allclose(ours, head.detach().numpy(), rtol=0, atol=1e-5)
