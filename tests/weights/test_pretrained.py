"""Published weights by name, preprocessing, another classifier."""

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

import vision_jax as vj
from vision_jax.data import split_ops

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=2)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that serves a small ViT of 1000 classes under every id; a list of what was asked for."""
    asked = []

    def download(repo, filename, **options):
        asked.append(repo)
        path = tmp_path / "model.safetensors"
        vj.save_weights(vj.create_model("vit_tiny_patch16_224", seed=3, **SMALL), path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_pretrained_takes_the_default_tag(hub):
    model = vj.create_model("vit_tiny_patch16_224", pretrained=True, **SMALL)
    assert hub == ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    same = vj.create_model("vit_tiny_patch16_224", seed=3, **SMALL)
    for name, value in vj.state_dict(same).items():
        np.testing.assert_array_equal(vj.state_dict(model)[name], value)


def test_pretrained_with_another_head_keeps_the_rest(hub):
    model = vj.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True, num_classes=5, **SMALL)
    assert model(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 5)
    same = vj.create_model("vit_tiny_patch16_224", seed=3, **SMALL)
    np.testing.assert_array_equal(vj.state_dict(model)["norm.weight"], vj.state_dict(same)["norm.weight"])


def test_wrong_names_are_told():
    with pytest.raises(vj.InputError, match="did you mean 'augreg_in21k_ft_in1k'"):
        vj.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1", pretrained=True)
    with pytest.raises(vj.InputError, match="abstract=True"):
        vj.create_model("vit_tiny_patch16_224", pretrained=True, abstract=True)


def test_preprocessing_is_the_weights():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8))
    found = vj.preprocessing("vit_tiny_patch16_224")(image)
    resized = image.resize((248, int(248 * 300 / 260)), Image.Resampling.BICUBIC)
    left, top = (248 - 224) // 2, round((resized.height - 224) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    np.testing.assert_allclose(found, (pixels - 0.5) / 0.5, atol=1e-6)


def test_squash_resizes_both_sides():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8))
    found = vj.preprocessing("vit_medium_patch16_gap_384.sw_in12k_ft_in1k")(image)
    resized = image.resize((404, 404), Image.Resampling.BICUBIC).crop((10, 10, 394, 394))
    np.testing.assert_allclose(found, np.asarray(resized, np.float32) / 127.5 - 1, atol=1e-6)


def test_preprocessing_follows_the_model():
    grey = vj.preprocessing(vj.create_model("vit_tiny_patch16_224", abstract=True, in_chans=1, **SMALL))
    assert grey(Image.new("RGBA", (40, 40))).shape == (32, 32, 1)
    assert split_ops(grey.ops)


def test_reset_classifier_keeps_everything_else():
    model = vj.create_model("vit_tiny_patch16_224", num_classes=7, **SMALL)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    reset = model.reset_classifier(3)
    assert reset(images).shape == (2, 3)
    assert model(images).shape == (2, 7)
    np.testing.assert_array_equal(reset.reset_classifier(0)(images), model.reset_classifier(0)(images))
