"""Weights in: strict, dialects recognised, other sizes and heads; and out again bit-equal."""

import numpy as np
import pytest
from flax import nnx

import vision_jax as vj
from vision_jax.weights.load import load_variables


def vit(**fields):
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}
    return vj.create_model("vit_tiny_patch16_224", **{**small, **fields})


def resnet(**fields):
    small = {"block": "bottleneck", "depths": (1, 2), "embed_dims": (4, 6), "num_classes": 5}
    return vj.create_model("resnet18", **{**small, **fields})


def random(model, seed=1):
    """The model with every leaf random: initial values would not show a swapped bias."""
    rng = np.random.default_rng(seed)
    arrays = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in vj.state_dict(model, "ours").items()}
    return vj.load_weights(model, arrays)


def assert_equal(a, b):
    a, b = vj.state_dict(a, "ours"), vj.state_dict(b, "ours")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("names", ["timm", "hf", "hf_modules", "big_vision", "ours"])
@pytest.mark.parametrize(("saved", "loaded"), [(False, False), (True, False), (False, True)])
def test_vit_round_trip(tmp_path, names, saved, loaded):
    model = random(vit(scan_blocks=saved))
    path = tmp_path / ("w.npz" if names == "big_vision" else "w.safetensors")
    vj.save_weights(model, path, names=names)
    assert_equal(vj.load_weights(vit(abstract=True, scan_blocks=loaded), path), model)


@pytest.mark.parametrize("fields", [{"layer_scale_init": 0.1, "qk_norm": True, "qkv_bias": False},
                                    {"class_token": False, "global_pool": "avg"}, {"num_classes": 0}])  # fmt: skip
def test_vit_options_round_trip(fields):
    model = random(vit(**fields))
    assert_equal(vj.load_weights(vit(abstract=True, **fields), vj.state_dict(model)), model)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_resnet_round_trip(tmp_path, block):
    model = random(resnet(block=block))
    vj.save_weights(model, tmp_path / "w.safetensors")
    assert_equal(vj.load_weights(resnet(abstract=True, block=block), str(tmp_path / "w.safetensors")), model)


def test_resnet_has_timm_names():
    names = vj.state_dict(resnet()).keys()
    assert {"layer1.0.conv1.weight", "layer2.1.bn3.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= names
    assert "layer2.0.downsample.1.num_batches_tracked" in names


def test_num_batches_tracked_may_be_absent_or_any():
    arrays = {k: v for k, v in vj.state_dict(resnet()).items() if not k.endswith("num_batches_tracked")}
    vj.load_weights(resnet(abstract=True), arrays)
    vj.load_weights(resnet(abstract=True), {**arrays, "bn1.num_batches_tracked": np.int64(10**6)})


def test_every_misfit_is_named_and_nothing_is_changed():
    arrays = vj.state_dict(random(vit()))
    arrays["blocks.0.mlp.fc1.weight"] = np.zeros((7, 12), np.float32)
    del arrays["blocks.1.attn.qkv.bias"], arrays["cls_token"]
    arrays["extra.weight"] = arrays["more"] = np.zeros(3, np.float32)
    model = vit()
    before = vj.state_dict(model)
    with pytest.raises(vj.InputError) as error:
        vj.load_weights(model, arrays)
    message = str(error.value)
    assert "source, read as 'timm', does not fit VisionTransformer, 5 misfits:" in message
    assert "mis-shaped blocks.0.mlp.fc1.weight: given (7, 12), wanted (48, 12)" in message
    assert "missing blocks.1.attn.qkv.bias (36,)" in message
    assert "missing cls_token (1, 1, 12)" in message
    assert "unexpected extra.weight (3,)" in message
    assert "unexpected more (3,)" in message
    for name, array in vj.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_one_of_three_split_names_missing():
    arrays = vj.state_dict(vit(), "hf")
    del arrays["vit.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(vj.InputError, match=r"missing vit\.\S+key\.weight \(12, 12\), for blocks\.1\.attn\.qkv"):
        vj.load_weights(vit(), arrays)


def test_misfits_are_told_against_the_closest_dialect():
    arrays = vj.state_dict(vit(), "hf")
    del arrays["vit.layernorm.weight"]
    with pytest.raises(vj.InputError, match=r"read as 'hf', .* 1 misfit:\n  missing vit.layernorm.weight"):
        vj.load_weights(vit(), arrays)


def test_torch_ignore_passes_derived_buffers(monkeypatch):
    arrays = {**vj.state_dict(vit()), "blocks.0.attn.index": np.zeros(3)}
    with pytest.raises(vj.InputError, match="unexpected"):
        vj.load_weights(vit(), arrays)
    monkeypatch.setattr(type(vit()), "torch_ignore", (r"attn\.index$",), raising=False)
    vj.load_weights(vit(), arrays)


def test_what_the_reference_holds_under_several_names():
    fields = dict(img_size=32, depths=(2, 1, 1), embed_dims=(8, 16, 16), mlp_ratios=(1, 1, 1), parallel_depth=1)
    model = random(vj.create_model("coat_tiny", **fields))
    arrays = vj.state_dict(model)
    for name, other in (
        ("cpe1.proj.bias", "serial_blocks1.1.cpe.proj.bias"),
        ("crpe3.conv_list.2.weight", "serial_blocks3.0.factoratt_crpe.crpe.conv_list.2.weight"),
        ("crpe3.conv_list.2.weight", "parallel_blocks.0.factoratt_crpe3.crpe.conv_list.2.weight"),
        ("parallel_blocks.0.mlp2.fc1.weight", "parallel_blocks.0.mlp3.fc1.weight"),
    ):
        np.testing.assert_array_equal(arrays[name], arrays[other], err_msg=other)
    assert_equal(vj.load_weights(vj.create_model("coat_tiny", abstract=True, **fields), arrays), model)


@pytest.mark.parametrize(("make", "classifier"), [(vit, "head."), (resnet, "fc.")])
@pytest.mark.parametrize("names", ["timm", "ours"])
def test_other_number_of_classes(make, classifier, names):
    given = random(make(num_classes=7))
    arrays = vj.state_dict(given, names)
    with pytest.raises(vj.InputError, match=r'mis-shaped .*(\n.*)*head="skip" leaves the classifier out'):
        vj.load_weights(make(abstract=True), arrays)
    loaded = vj.state_dict(vj.load_weights(make(abstract=True), arrays, head="skip", seed=3), "ours")
    initial, given = vj.state_dict(make(seed=3), "ours"), vj.state_dict(given, "ours")
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, (initial if name.startswith(classifier) else given)[name], err_msg=name)


def test_concrete_model_keeps_its_head():
    model = random(vit())
    head = np.asarray(model.head.kernel[...])
    vj.load_weights(model, vj.state_dict(vit(num_classes=0)), head="skip")
    np.testing.assert_array_equal(model.head.kernel[...], head)


def test_half_a_head_is_no_head():
    model, arrays = vit(), vj.state_dict(random(vit()))
    del arrays["head.bias"]
    head = np.asarray(model.head.kernel[...])
    vj.load_weights(model, arrays, head="skip")
    np.testing.assert_array_equal(model.head.kernel[...], head)


def test_head_of_the_source_is_dropped_by_a_model_without_one():
    arrays = vj.state_dict(vit(), "hf")
    with pytest.raises(vj.InputError, match=r"unexpected classifier\.weight"):
        vj.load_weights(vit(num_classes=0), arrays)
    vj.load_weights(vit(num_classes=0), arrays, head="skip")


def test_skip_forgives_the_head_alone():
    arrays = vj.state_dict(vit(num_classes=7))
    del arrays["cls_token"]
    with pytest.raises(vj.InputError, match=r" 1 misfit:\n  missing cls_token"):
        vj.load_weights(vit(), arrays, head="skip")
    with pytest.raises(vj.InputError, match="head"):
        vj.load_weights(vit(), arrays, head="skpi")


def test_positions_are_resampled():
    given = random(vit())
    model = vj.load_weights(vit(img_size=(24, 32), abstract=True), vj.state_dict(given))
    assert model.pos_embed.shape == (1, 1 + 6 * 8, 12)
    np.testing.assert_array_equal(model.pos_embed[:, 0], given.pos_embed[:, 0])
    np.testing.assert_array_equal(model.cls_token[...], given.cls_token[...])


def test_positions_of_another_width_are_misfits():
    arrays = {**vj.state_dict(vit()), "pos_embed": np.zeros((1, 26, 13), np.float32)}
    with pytest.raises(vj.InputError, match=r"mis-shaped pos_embed: given \(1, 26, 13\), wanted \(1, 17, 12\)"):
        vj.load_weights(vit(), arrays)


def test_values_are_copied():
    arrays = vj.state_dict(random(vit()))
    model = vj.load_weights(vit(), arrays)
    before = vj.state_dict(model)
    for array in arrays.values():
        array[...] = 7
    for name, array in vj.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_variables_of_a_static():
    model = random(resnet())
    static, variables = vj.split(resnet(abstract=True))
    loaded = load_variables(static, vj.state_dict(model))
    assert loaded.keys() == variables.keys()
    merged = vj.merge(static, loaded)
    assert_equal(merged, model)
    assert nnx.graphdef(merged) == static.graphdef


def test_abstract_model_has_no_state_dict():
    with pytest.raises(vj.InputError, match="abstract"):
        vj.state_dict(vit(abstract=True))


def test_unknown_names():
    with pytest.raises(vj.InputError, match="unknown names 'tim': did you mean 'timm'"):
        vj.state_dict(vit(), "tim")
