"""Exports: weight files of a reference's names, and serialised forward passes for platforms that are not here."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax import export as jax_export

import families
import vision_jax as vj
from vision_jax.tools import export

FIELDS = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)
ARGUMENTS = [part for name, value in FIELDS.items() for part in ("--field", f"{name}={value}")]


@pytest.fixture(scope="module")
def model():
    return vj.create_model("vit_tiny_patch16_224", **FIELDS)


@pytest.fixture
def weights(model, tmp_path):
    vj.save_weights(model, tmp_path / "ours.safetensors", names="ours")
    return str(tmp_path / "ours.safetensors")


def test_weights_get_the_reference_names(model, weights, tmp_path, capsys):
    output = str(tmp_path / "timm.safetensors")
    assert export.main(["vit_tiny_patch16_224", "--weights", weights, "--output", output, *ARGUMENTS]) == 0
    assert "MiB" in capsys.readouterr().out
    found, expected = safetensors.numpy.load_file(output), vj.state_dict(model, "timm")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.heavy
def test_a_forward_pass_runs_from_its_file_at_any_batch(model, weights, tmp_path):
    output = tmp_path / "model.jax"
    options = ["--weights", weights, "--output", str(output), "--platform", "cpu"]
    assert export.main(["vit_tiny_patch16_224", *options, *ARGUMENTS]) == 0
    call = jax_export.deserialize(bytearray(output.read_bytes())).call
    for batch in (1, 3):
        images = np.random.default_rng(batch).standard_normal((batch, 16, 16, 3)).astype(np.float32)
        np.testing.assert_allclose(jax.jit(call)(images), vj.jit(model)(images), rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms(model, platform):
    exported = jax_export.deserialize(bytearray(export.export_forward(model, platform)))
    assert exported.platforms == (platform,)


@pytest.mark.heavy
@pytest.mark.parametrize("key", families.FAMILIES)
def test_every_family_for_any_batch(key):
    name, fields = families.FAMILIES[key]
    exported = jax_export.deserialize(bytearray(export.export_forward(vj.create_model(name, **fields), "tpu")))
    assert str(exported.in_avals[0].shape[0]) == str(exported.out_avals[0].shape[0]) == "b"


def test_wrong_input_is_told(weights, tmp_path, capsys):
    output = str(tmp_path / "out")
    base = ["vit_tiny_patch16_224", "--weights", weights, "--output", output]
    assert export.main([*base, *ARGUMENTS, "--platform", "tpo"]) == 2
    assert "did you mean 'tpu'" in capsys.readouterr().err
    assert export.main([*base, "--field", "depth"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
    assert export.main([*base, *ARGUMENTS, "--field", "num_classes=6"]) == 2
    assert "head" in capsys.readouterr().err


def test_a_deployed_model(tmp_path, capsys):
    fields = dict(depths=(1,), embed_dims=(8,), attention_dims=(4,), attend=(True,), num_classes=3)
    model = vj.create_model("shvit_s1", **fields)
    vj.save_weights(model, tmp_path / "trained.safetensors", names="ours")
    output = tmp_path / "deployed.safetensors"
    options = ["shvit_s1", "--weights", str(tmp_path / "trained.safetensors"), "--output", str(output), "--deploy"]
    options += [part for name, value in fields.items() for part in ("--field", f"{name}={value}")]
    assert export.main(options) == 2
    assert "--names ours" in capsys.readouterr().err
    assert export.main([*options, "--names", "ours"]) == 0
    expected = vj.state_dict(model.reparameterize(), "ours")
    found = safetensors.numpy.load_file(output)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
