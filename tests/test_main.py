"""The command as a person uses it. Wrong input is answered with one message, and nothing is written."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import tiny_run
from vision_jax.main import main

OF_TWO = ("--coordinator=localhost:1234", "--num_processes=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a finished run; its name has a space."""
    workdir = tmp_path_factory.mktemp("a run") / "w d"
    assert main(tiny_run.arguments(workdir)) == 0
    return workdir


def contents(directory):
    """Every file below a directory, with what is in it."""
    return {path: path.read_bytes() for path in pathlib.Path(directory).rglob("*") if path.is_file()}


@pytest.fixture
def refused(capsys):
    """Runs the command, which must refuse: gives what it said."""

    def call(*argv, code=2, lines=1):
        argv = [str(word) for word in argv]
        assert main(argv) == code
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert "Traceback" not in said
        assert said.rstrip().endswith("(--debug shows where)")
        assert lines is None or len(said.splitlines()) == lines, said
        return said

    return call


# --- The command line itself.


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ["--workdir", "needed"]),
        (["--workdir", "w"], ["--config", "needed", "configs/digits_vit.py"]),
        (["--config", "configs/digits_vit.py"], ["--workdir", "needed"]),
        (["--workdr=w"], ["--workdr", "did you mean '--workdir'"]),
        (["--cfg", "x", "--workdir", "w"], ["--cfg", "--config"]),
        (["--workdir"], ["--workdir", "expected one argument"]),
        (["--workdir", "w", "extra"], ["'extra'"]),
        (["--mode=trian", "--workdir", "w"], ["--mode", "'trian'", "did you mean 'train'"]),
        (["--mode=predict", "--workdir", "w"], ["--images", "needed"]),
        (["--mode=eval", "--workdir", "w", "--images", "x.png"], ["--images", "--mode=predict"]),
        (["--mode=eval", "--workdir", "w", "--step", "last"], ["--step", "'last'"]),
        (["--config", "r.py", "--workdir", "w", "--step", "3"], ["--step", "--mode=eval"]),
        (["--mode=eval", "--workdir", "w", "--compile_only=v5e:2x2"], ["--compile_only", "--mode=train"]),
        (["--compile_only=v5e:2x2"], ["--config", "needed", "configs/digits_vit.py"]),
        (["--config.optim.lr", "--workdir", "w"], ["--config.optim.lr", "value"]),
        (["--config", "r.py", "--workdir", "gs://bucket/w"], ["gs://bucket/w", "directory"]),
        (["--config", "r.py", "--workdir", "w", "--num_processes=2"], ["--coordinator", "together"]),
        (["--config", "r.py", "--workdir", "w", *OF_TWO, "--process_id=2"], ["--process_id=2", "0 to 1"]),
        (["--config", "r.py", "--workdir", "w", *OF_TWO, "--process_id=one"], ["--process_id", "'one'"]),
        (["--mode=predict", "--workdir", "w", "--images", "x.png", "--distributed"], ["--distributed", "--mode=eval"]),
        (["--config", "nowhere/recipe.py", "--workdir", "w"], ["--config", "nowhere/recipe.py", "no such file"]),
        (["--mode=eval", "--workdir", "w"], ["w/config.json", "--workdir"]),
        (["--mode=predict", "--workdir", "w", "--images", "x.png"], ["w/config.json", "--workdir"]),
    ],
)
def test_wrong_arguments(argv, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(*argv)
    for part in says:
        assert part in message
    assert not list(tmp_path.iterdir())


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--mode=predict" in capsys.readouterr().out


# --- Configs that cannot be.


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model.name": "vit_tinny_patch16_224"}, ["model", "did you mean 'vit_tiny_patch16_224'"]),
        ({"model.widht": 3}, ["widht", "config field of vit_tiny_patch16_224"]),
        ({"model.num_heads": 3}, ["embed_dim=16", "num_heads=3"]),
        ({"model.patch_size": 3}, ["img_size", "patch_size=3", "9"]),
        ({"model.depth": "1.5"}, ["config.model.depth=1.5", "int"]),
        ({"model.embed_dim": "'many'"}, ["config.model.embed_dim='many'", "int"]),
        ({"model.qk_norm": "maybe"}, ["config.model.qk_norm='maybe'", "bool"]),
        ({"model.num_classes": 7}, ["config.model.num_classes=7", "10"]),
        ({"model.in_chans": 3}, ["config.model.in_chans=3", "1"]),
        ({"optim.lrate": 1}, ["config.optim.lrate", "did you mean 'lr'"]),
        ({"optim": "{'lrate': 1}"}, ["config.optim.lrate", "did you mean 'lr'"]),
        ({"optim.name": "adamv"}, ["optimiser 'adamv'", "did you mean 'adamw'"]),
        ({"optim.options.momentum": 1}, ["option of adamw", "momentum", "b1"]),
        ({"optim.schedule.name": "cosin"}, ["schedule 'cosin'", "did you mean 'cosine'"]),
        ({"optim.schedule.warmup": "3 epoch s"}, ["optim.schedule.warmup='3 epoch s'", "epochs"]),
        ({"optim.schedule.warmup": "20"}, ["warmup=20", "total_steps=12"]),
        ({"optim.freeze": "haed"}, ["freeze", "haed", "head"]),
        ({"optim.accumulate": 0}, ["config.optim.accumulate=0"]),
        ({"task.name": "clasification"}, ["task.name", "did you mean 'classification'"]),
        ({"task.loss": "softmx"}, ["task.loss", "did you mean 'softmax'"]),
        ({"task.label_smoothin": 0.1}, ["label_smoothin", "did you mean 'label_smoothing'"]),
        ({"task.teacher": "resnet18"}, ["task.teacher_weights"]),
        ({"data.source": "digit"}, ["data source", "did you mean 'digits'"]),
        ({"data.split": "tran"}, ["split", "did you mean 'train'"]),
        ({"data.options.root": "x"}, ["option of data source digits", "root"]),
        ({"data.ops": "('normalise',)"}, ["op", "did you mean 'normalize'"]),
        ({"data.ops": "('resize(sise=8)', 'normalize')"}, ["argument of resize", "did you mean 'size'"]),
        ({"data.ops": "('decode(channels=3)', 'normalize')"}, ["data.ops", "3 channels", "eval.ops"]),
        ({"data.ops": "('resize(16)', 'normalize')"}, ["data.ops", "(16, 16)", "eval.ops"]),
        ({"data.batch_size": 36}, ["data.batch_size=36", "8", "32 and 40"]),
        ({"optim.accumulate": 3}, ["data.batch_size=32", "24", "accumulate=3"]),
        ({"eval.batch_size": 100}, ["eval.batch_size=100", "96 and 104"]),
        ({"data.batch_size": 0}, ["config.data.batch_size=0"]),
        ({"data.workers": -1}, ["config.data.workers=-1"]),
        ({"data.on_error": "replaced"}, ["data.on_error", "did you mean 'replace'"]),
        ({"mesh.fsdp": 3}, ["mesh", "8 devices"]),
        ({"mesh.data": 3}, ["mesh", "8 devices"]),
        ({"dtype": "float16"}, ["dtype", "bfloat16"]),
        ({"seed": -1}, ["config.seed=-1"]),
        ({"seed": "x"}, ["config.seed='x'", "int"]),
        ({"ema": 1.5}, ["config.ema=1.5"]),
        ({"total": "0 steps"}, ["config.total='0 steps'"]),
        ({"total": "10 parsecs"}, ["config.total", "parsecs", "epochs"]),
        ({"eval.every": 0}, ["config.eval.every='0 steps'"]),
        ({"checkpoint.every": "0.001 epochs"}, ["config.checkpoint.every='0.001 epochs'"]),
        ({"checkpoint.keep_last": 0}, ["config.checkpoint.keep_last=0"]),
        ({"log_every": 0}, ["config.log_every=0"]),
        ({"profile_steps": 3}, ["config.profile_steps=(3,)"]),
        ({"init_from": "no/where"}, ["no/where"]),
        ({"sharding_rules": "(('head', 'fsdq'),)"}, ["placement", "did you mean 'fsdp'"]),
    ],
)
def test_wrong_configs(fields, says, refused, tmp_path):
    message = refused(*tiny_run.arguments(tmp_path / "w", fields={**tiny_run.VIT, **fields}))
    for part in says:
        assert part in message
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="did you mean"):
        main([*tiny_run.arguments(tmp_path / "w", optim__name="adamv"), "--debug"])


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("vision_jax.train.loop.build", lambda *_, **__: int("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main(tiny_run.arguments(tmp_path / "w"))


def test_interrupted_by_hand(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vision_jax.train.loop.build", interrupt)
    assert main(tiny_run.arguments(tmp_path / "w")) == 130
    assert capsys.readouterr().err == "interrupted\n"


# --- Directories and files that are not what they should be.


def folder(root, splits=("train", "val"), classes=("cat", "dog"), number=4):
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                image = np.random.default_rng((label, i)).integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(image).save(root / split / name / f"{i}.png")
    return root


FOLDER = {
    **tiny_run.RESNET,
    "data.ops": "('decode', 'resize((16, 16))', 'normalize')",
    "eval.ops": "('decode', 'resize((16, 16))', 'normalize')",
    "data.batch_size": 8,
    "eval.batch_size": 8,
    "data.workers": 0,
}


def test_a_missing_directory(refused, tmp_path):
    message = refused(*tiny_run.arguments(tmp_path / "w", f"folder.py:{tmp_path / 'none'}", FOLDER))
    assert str(tmp_path / "none") in message
    assert "does not exist" in message
    assert not list(tmp_path.iterdir())


def test_an_empty_directory(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    message = refused(*tiny_run.arguments(tmp_path / "w", f"folder.py:{tmp_path / 'photos'}", FOLDER))
    assert str(tmp_path / "photos") in message
    assert not (tmp_path / "w").exists()


def test_class_folders_without_images(refused, tmp_path):
    root = folder(tmp_path / "photos")
    (root / "train" / "emu").mkdir()
    message = refused(*tiny_run.arguments(tmp_path / "w", f"folder.py:{root}", FOLDER))
    assert "emu" in message
    assert not (tmp_path / "w").exists()


def test_a_text_file_named_jpg(refused, tmp_path):
    root = folder(tmp_path / "photos")
    (root / "train" / "cat" / "0.png").unlink()
    (root / "train" / "cat" / "0.jpg").write_text("hello")
    message = refused(*tiny_run.arguments(tmp_path / "w", f"folder.py:{root}", FOLDER))
    assert f"{root}/train/cat/0.jpg: not an image" in message
    assert not (tmp_path / "w").exists()


def test_evaluation_classes_other_than_the_training_ones(refused, tmp_path):
    a, b = folder(tmp_path / "a", ("train",)), folder(tmp_path / "b", ("val",), ("cat", "emu"))
    argv = tiny_run.arguments(tmp_path / "w", f"folder.py:{a}", FOLDER, eval__options__root=f"'{b}'")
    assert "emu" in refused(*argv)
    assert not (tmp_path / "w").exists()


@pytest.mark.heavy
def test_images_of_several_sizes(refused, tmp_path):
    root = folder(tmp_path / "photos")
    Image.new("RGB", (9, 9)).save(root / "train" / "dog" / "3.png")
    ops = "('decode', 'normalize')"
    argv = tiny_run.arguments(tmp_path / "w", f"folder.py:{root}", FOLDER, data__ops=ops, data__batch_size=8)
    message = refused(*argv, lines=None)
    assert "differ in shape" in message
    assert "dog/3.png" in message


def test_a_workdir_that_cannot_be(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refused(*tiny_run.arguments(tmp_path / "file"), lines=None)
    assert str(tmp_path / "file") in refused(*tiny_run.arguments(tmp_path / "file" / "w"), lines=None)
    assert contents(tmp_path) == {tmp_path / "file": b"mine"}
    refused(*tiny_run.arguments("/proc/w"), lines=None)


# --- A run that is there already.


@pytest.mark.heavy
def test_what_a_run_leaves(trained):
    assert {path.name for path in trained.iterdir() if not path.name.startswith("events")} == {
        "checkpoints",
        "config.json",
        "confusion.png",
        "metrics.jsonl",
        "predictions.png",
    }
    assert list(trained.glob("events.out.tfevents.*"))
    for name in ("predictions.png", "confusion.png"):
        Image.open(trained / name).verify()
    assert json.loads((trained / "config.json").read_text())["model"]["depth"] == 1


@pytest.mark.heavy
def test_the_run_of_another_model(refused, trained):
    before = contents(trained)
    message = refused(*tiny_run.arguments(trained, "digits_resnet.py", tiny_run.RESNET), lines=None)
    assert "model.name: 'vit_tiny_patch16_224' -> 'resnet18'" in message
    assert "--workdir of its own" in message
    message = refused(*tiny_run.arguments(trained, model__embed_dim=32), lines=None)
    assert "model.embed_dim: 16 -> 32" in message
    message = refused(*tiny_run.arguments(trained, optim__name="lion"), lines=None)
    assert "optim.name: 'adamw' -> 'lion'" in message
    assert contents(trained) == before


@pytest.mark.heavy
def test_evaluation_alone(trained, capsys):
    record = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert main(["--mode=eval", "--workdir", str(trained)]) == 0
    assert f"step 12, 360 images: loss {record['eval/loss']:.4f}" in capsys.readouterr().out
    told = json.loads((trained / "eval_12.json").read_text())
    assert told == {"step": 12, "images": 360, **{k[5:]: v for k, v in record.items() if k.startswith("eval/")}}


@pytest.mark.heavy
def test_evaluation_of_another_step_and_size_of_batch(trained, capsys):
    argv = ["--mode=eval", "--workdir", str(trained), "--step=8", "--config.eval.batch_size=48"]
    assert main(argv) == 0
    assert "step 8, 360 images" in capsys.readouterr().out


@pytest.mark.heavy
def test_evaluation_that_cannot_be(refused, trained, tmp_path):
    before = contents(trained)
    message = refused("--mode=eval", "--workdir", trained, "--step=7", lines=None)
    assert "unknown checkpoint step 7" in message
    assert "12" in message
    message = refused("--mode=eval", "--workdir", trained, "--config.model.embed_dim=32", lines=None)
    assert "holds another state" in message
    assert "did you mean 'eval'" in refused("--mode=eval", "--workdir", trained, "--config.evl.every=3")
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    assert f"no checkpoint in {tmp_path}" in refused("--mode=eval", "--workdir", tmp_path)
    assert contents(trained) == before
    assert len(contents(tmp_path)) == 1


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Image files of digits, and one of a colour photograph."""
    from vision_jax.data import load_source

    root, source = tmp_path_factory.mktemp("digits"), load_source("digits", "test")
    for i in range(5):
        Image.fromarray(source[i]["image"][..., 0]).save(root / f"{i}.png")
    (root / "sub").mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(root / "sub" / "photo.JPG")
    return root


@pytest.mark.heavy
def test_prediction(trained, digits, capsys, monkeypatch):
    monkeypatch.chdir(digits)
    assert main(["--mode=predict", "--workdir", str(trained), "--images", str(digits), "--images=*.png"]) == 0
    capsys.readouterr()
    assert main(["--mode=predict", "--workdir", str(trained), f"--images={digits}", "--step=8"]) == 0
    said = capsys.readouterr()
    told = json.loads((trained / "predict.json").read_text())
    assert told["step"] == 8
    rows = told["predictions"]
    assert [row["file"] for row in rows] == [*(f"{digits}/{i}.png" for i in range(5)), f"{digits}/sub/photo.JPG"]
    assert [row["file"] in line for row, line in zip(rows, said.out.splitlines(), strict=True)] == [True] * 6
    for row in rows:
        likely = [c["probability"] for c in row["classes"]]
        assert likely == sorted(likely, reverse=True)
        assert {c["class"] for c in row["classes"]} < set("0123456789")
    Image.open(trained / "predict.png").verify()
    assert str(trained / "predict.png") in said.err


@pytest.mark.heavy
def test_prediction_is_that_of_evaluation(trained, monkeypatch):
    """In several batches, the last one not full."""
    monkeypatch.setattr("vision_jax.train.pictures.prediction_grid", lambda *_, **__: None)
    from vision_jax.data import load_source
    from vision_jax.train.config import read_config
    from vision_jax.train.use import predict_files

    source = load_source("digits", "test")
    files = trained.parent / "files"
    files.mkdir(exist_ok=True)
    for i in range(len(source)):
        Image.fromarray(source[i]["image"][..., 0]).save(files / f"{i:03}.png")
    config = read_config(trained / "config.json", [("eval.batch_size", "104")])
    rows = predict_files(config, trained, [str(files)])
    right = [row["classes"][0]["class"] == str(source[i]["label"]) for i, row in enumerate(rows)]
    record = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert np.mean(right) == pytest.approx(record["eval/accuracy"], abs=1e-6)


@pytest.mark.heavy
def test_prediction_that_cannot_be(refused, trained, digits, tmp_path):
    before = contents(trained)
    predict = ("--mode=predict", "--workdir", trained)
    assert "--images=none/*.png" in refused(*predict, "--images=none/*.png")
    assert str(digits / "9.png") in refused(*predict, "--images", digits / "0.png", digits / "9.png")
    (tmp_path / "text.jpg").write_text("hello")
    message = refused(*predict, "--images", tmp_path / "text.jpg")
    assert f"{tmp_path / 'text.jpg'}: not an image" in message
    message = refused(*predict, "--config", tiny_run.CONFIGS / "digits_vit.py", "--images", digits)
    assert "config.json of a run" in message
    assert contents(trained) == before
