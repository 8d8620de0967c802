"""Pictures of photographs, and the command that writes them."""

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

import tiny
import vision_jax as vj
from vision_jax.errors import InputError
from vision_jax.tools.visualize import KINDS, figures, kinds, picture, possible, prepare
from vision_jax.tools.visualize.__main__ import main

VIT = [f"--field={name}={value}" for name, value in {**tiny.VIT, "img_size": 32, "patch_size": 8}.items()]


@pytest.fixture
def files(tmp_path):
    photos = {"cat": skimage.data.chelsea(), "flower": load_sample_image("flower.jpg")}
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return [f"--image={tmp_path / name}.png" for name in photos]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("vit_tiny_patch16_224", "attention rollout pca erf gradcam"),
        ("swinv2_tiny_window8_256", "attention rollout bias pca erf gradcam"),
        ("dinat_mini", "attention rollout bias pca erf gradcam"),
        ("maxvit_rmlp_pico_rw_256", "bias pca erf gradcam"),
        ("davit_tiny", "attention pca erf gradcam"),  # half of its attention is over channels: no rollout
        ("efficientnet_b0", "pca erf gradcam"),
        ("cvt_13", "pca erf"),  # its stages give tuples
    ],
)
def test_what_a_family_can_give(name, kinds):
    assert possible(vj.create_model(name, abstract=True)) == kinds.split()


def test_a_kind_that_a_family_cannot_give():
    model = tiny.resnet()
    with pytest.raises(InputError, match=r"resnet18 cannot give 'bias': .* It can give pca, erf, gradcam"):
        picture(model, "bias", [])
    with pytest.raises(InputError, match="unknown kind 'grad-cam': did you mean 'gradcam'"):
        picture(model, "grad-cam", [])
    with pytest.raises(InputError, match="kind 'erf' needs at least one image"):
        picture(model, "erf", [])


def test_photographs_are_shown_as_the_model_sees_them():
    model = vj.create_model("vit_tiny_patch16_224", img_size=64, patch_size=16, abstract=True)
    photo = skimage.data.astronaut()
    images, pixels = prepare(model, [photo, Image.fromarray(photo)])
    assert images.shape == pixels.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(pixels[0], pixels[1])
    small = np.asarray(Image.fromarray(photo).resize((71, 71), Image.Resampling.BICUBIC))[4:68, 4:68]
    assert np.abs(pixels[0].astype(int) - small).max() <= 1
    grey = tiny.vit(in_chans=1)
    images, pixels = prepare(grey, [photo])
    assert (images.shape, pixels.shape) == ((1, 8, 8, 1), (1, 8, 8, 3))


def test_some_of_many():
    assert figures.evenly([*range(12)], 4) == [0, 4, 7, 11]
    assert figures.evenly("abc", 4) == [*"abc"]


def test_a_query_is_a_place_on_the_image(monkeypatch):
    model = vj.create_model("vit_tiny_patch16_224", **{**tiny.VIT, "img_size": 32, "patch_size": 8})
    seen = []
    monkeypatch.setattr(kinds, "rollout", lambda model, images, query: seen.append(query) or np.ones((1, 4, 4)))
    for query in (None, "class", (0.3, 1), (0, 0.75)):
        picture(model, "rollout", [skimage.data.chelsea()], query=query)
    assert seen == [None, "class", (1, 3), (0, 3)]


def test_no_evidence_is_dark(monkeypatch):
    """Not the middle of a scale that was made for nothing."""
    scales = []
    show = figures._show
    monkeypatch.setattr(figures, "_show", lambda axes, *args, **how: scales.append(how) or show(axes, *args, **how))
    figures.overlay(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2, 2)), [""], "evidence, %")
    assert [(how["vmin"], how["vmax"]) for how in scales if how.get("cmap") == "viridis"] == [(0, 100)] * 2
    scales.clear()
    figures.overlay(np.zeros((1, 8, 8, 3), np.uint8), np.float32([[[1, 1], [2, 4]]]), [""], "share, %", share=True)
    assert [(how["vmin"], how["vmax"]) for how in scales if how.get("cmap") == "viridis"] == [(12.5, 50)] * 2


@pytest.mark.heavy
def test_the_command(tmp_path, files, capsys):
    model = vj.create_model("vit_tiny_patch16_224", **{**tiny.VIT, "img_size": 32, "patch_size": 8}, seed=1)
    vj.save_weights(model, tmp_path / "w.safetensors")
    out = tmp_path / "new" / "pictures"
    command = ["--model=vit_tiny_patch16_224", *VIT, *files, f"--out={out}"]
    assert main([*command, f"--weights={tmp_path / 'w.safetensors'}"]) == 0
    names = ["attention_cat", "attention_flower", "rollout", "pca", "erf", "gradcam"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {out / name}.png" for name in names]
    for name in names:
        shown = np.asarray(Image.open(out / f"{name}.png"))
        assert shown.shape[1] == 900
        assert shown.std() > 20
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 100
    trained = (out / "gradcam.png").read_bytes()
    assert main([*command, "gradcam", "rollout", "attention", "--layers=blocks.2.*", "--query=0.9,0", "--label=3"]) == 0
    assert capsys.readouterr().out.count("wrote") == 4
    assert (out / "gradcam.png").read_bytes() != trained


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["attention", "rolout"], "unknown kind 'rolout': did you mean 'rollout'"),
        (["bias"], "vit_tiny_patch16_224 cannot give 'bias': it has no bias for relative positions. It can give atten"),
        (["erf"], "kind 'erf' needs at least one image"),
        (["--image=none.png"], "none.png"),
        (["attention", "--query=2,0"], "--query=2,0: 'class', or how far down and right in 0..1, as --query 0.5,0.25"),
        (["attention", "--query=left"], "--query=left: 'class'"),
        (["--pretrained", "--weights=w.safetensors"], "--weights and --pretrained: one of them"),
        (["--field=depth"], "--field=depth: NAME=VALUE is wanted"),
        (["gradcam", "--label=5", "FILES"], "labels=[5, 5]: one class in 0..4"),
        (["attention", "--layers=stages.*", "FILES"], "unknown attention layer 'stages.*'"),
    ],
)
def test_what_the_command_refuses(args, message, tmp_path, files, capsys):
    args = [each for arg in args for each in (files if arg == "FILES" else [arg])]
    assert main(["--model=vit_tiny_patch16_224", *VIT, f"--out={tmp_path / 'pictures'}", *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_file_that_is_no_image(tmp_path, capsys):
    (tmp_path / "notes.jpg").write_text("no image")
    args = ["--model=vit_tiny_patch16_224", *VIT, f"--out={tmp_path}", f"--image={tmp_path / 'notes.jpg'}"]
    assert main(args) == 2
    assert "notes.jpg: not an image" in capsys.readouterr().err


def test_help_names_the_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert [kind for kind in KINDS if f"`{kind}`" not in told] == []
