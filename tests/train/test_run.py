"""What a config describes, built; and runs on the data sets that people bring."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

import tiny_run
from tiny_run import config, records
from vision_jax.data import train_batches
from vision_jax.errors import InputError
from vision_jax.main import main
from vision_jax.train import loop, run

SHADES = ("dark", "light")
SMALL = {
    "total": 6,
    "data.ops": "('decode', 'resize((16, 16))', 'flip', 'normalize')",
    "eval.ops": "('decode', 'resize((16, 16))', 'normalize')",
    "data.batch_size": 8,
    "eval.batch_size": 8,
    "data.workers": 0,
}
RESNET = {**tiny_run.RESNET, **SMALL}
VIT = {**tiny_run.VIT, **SMALL, "model.patch_size": 8, "model.embed_dim": 16}


def photos(root, splits=("",), number=6, damaged=()):
    """A directory of images of two classes, some of them no images at all."""
    for split in splits:
        for label, name in enumerate(SHADES):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                path = root / split / name / f"{i}.png"
                Image.fromarray(np.full((20, 24, 3), 10 * i + 100 * label, np.uint8)).save(path)
                if (name, i) in damaged:
                    path.write_bytes(path.read_bytes()[:30])
    return root


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(loop, "report", lambda *_: {})


# --- Built.


def test_the_data_decide_the_models_shape():
    r = run.build(config(), training=True, evaluation=True)
    c = r.model.config
    assert (c.img_size, c.in_chans, c.num_classes, c.embed_dim) == ((8, 8), 1, 10, 16)
    assert (r.total_steps, r.eval_every, r.save_every) == (12, 6, 4)
    r = run.build(config(total="3 epochs", eval__every="1 epochs", checkpoint__every="50%"), training=True)
    assert (r.total_steps, r.eval_every, r.save_every) == (135, 45, 68)


@pytest.mark.parametrize(
    ("device_batch", "accumulate", "wanted"),
    [(0, 1, 1), (8, 1, 1), (4, 1, 1), (3, 1, 2), (1, 1, 4), (3, 4, 4), (0, 2, 2)],
)
def test_what_a_device_takes_at_once_decides_the_microbatches(device_batch, accumulate, wanted):
    """32 examples on eight devices are four for each."""
    given = config(optim__device_batch=device_batch, optim__accumulate=accumulate)
    assert run.build(given, training=True).config.optim.accumulate == wanted
    assert given.optim.accumulate == accumulate


def test_sizes_of_training_and_evaluation_may_differ_where_the_model_takes_both():
    fields = {"data.ops": "('resize(24)', 'normalize')", "model.depths": (1, 1), "model.embed_dims": (8, 16)}
    r = run.build(config("digits_resnet.py", fields), training=True, evaluation=True)
    assert r.model.config.img_size == (32, 32)


def test_the_best_is_judged_by_a_metric_that_there_is():
    for wrong, near in (("acuracy", "accuracy"), ("eval_loss", "loss")):
        message = rf"unknown config.checkpoint.keep_best '{wrong}': did you mean '{near}'\? \(one of accuracy, accu"
        with pytest.raises(InputError, match=message):
            run.build(config(checkpoint__keep_best=wrong), training=True)


def test_a_damaged_first_image(tmp_path):
    """It tells the images' shape, and must neither go unnamed nor stop a run that replaces such images."""
    root = photos(tmp_path / "photos", ("train",), damaged=[("dark", i) for i in range(3)])
    with pytest.raises(InputError, match=r"photos/train/dark/0\.png: .*image"):
        run.build(config(f"folder.py:{root}", RESNET), training=True)
    run.build(config(f"folder.py:{root}", RESNET, data__on_error="replace"), training=True)


# --- Folders of images.


@pytest.mark.heavy
@pytest.mark.parametrize("splits", [("",), ("train", "val")])
def test_folders(tmp_path, no_pictures, splits):
    root = photos(tmp_path / "photos", splits, number=10)
    assert main(tiny_run.arguments(tmp_path / "w", f"folder.py:{root}", RESNET)) == 0
    assert json.loads((tmp_path / "w" / "config.json").read_text())["task"]["class_names"] == list(SHADES)
    assert [record["step"] for record in records(tmp_path / "w", "eval/accuracy")] == [6]


@pytest.mark.heavy
def test_a_damaged_image_stops_the_run_or_is_replaced_and_counted(tmp_path, no_pictures, capsys):
    damaged = [("dark", 4), ("light", 2)]
    root = photos(tmp_path / "photos", ("train",), damaged=damaged)
    photos(tmp_path / "photos", ("val",))
    recipe, fields = f"folder.py:{root}", {**RESNET, "log_every": 4}
    assert main(tiny_run.arguments(tmp_path / "stopped", recipe, fields)) == 2
    said = capsys.readouterr().err
    assert any(f"error: {root}/train/{name}/{i}.png: " in said for name, i in damaged)
    assert "Traceback" not in said
    fields |= {"data.on_error": "replace"}
    assert main(tiny_run.arguments(tmp_path / "replaced", recipe, fields)) == 0
    c = config(recipe, fields)
    r = run.build(c, training=True)
    with train_batches(r.train_source, r.train_ops[0], batch_size=8, seed=c.seed, on_error="replace") as batches:
        counts = [int(next(batches)["replaced"].sum()) for _ in range(6)]
    told = [record["train/images_replaced"] for record in records(tmp_path / "replaced", "train/images_replaced")]
    assert told == [sum(counts[:4]), sum(counts[4:])]
    assert sum(counts) > 3


# --- Data sets of TensorFlow Datasets.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small data set in ArrayRecord files, written without TensorFlow; the directory of its version."""
    import tensorflow_datasets as tfds

    class Tones(tfds.core.GeneratorBasedBuilder):
        """Grey images labelled dark and light. One process may prepare one data set of a name."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3))
            features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=SHADES)})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(10)}

        def _generate_examples(self, number):
            for i in range(number):
                buffer = io.BytesIO()
                Image.fromarray(np.full((20, 24, 3), 100 * (i % 2) + i, np.uint8)).save(buffer, "PNG")
                yield i, {"image": io.BytesIO(buffer.getvalue()), "label": SHADES[i % 2]}

    data_dir = tmp_path_factory.mktemp("tfds")
    Tones(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir / "tones" / "1.0.0"


@pytest.fixture
def no_tensorflow(monkeypatch):
    class Refuse:
        def find_spec(self, name, *_):
            if name.partition(".")[0] == "tensorflow":
                raise ImportError(name)

    assert "tensorflow" not in sys.modules
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])


@pytest.mark.heavy
def test_tfds_trains_without_tensorflow(tmp_path, prepared, no_tensorflow, no_pictures):
    fields = {**VIT, "model.drop_path_rate": 0.1}
    assert main(tiny_run.arguments(tmp_path / "w", f"tfds.py:{prepared}", fields)) == 0
    assert [record["step"] for record in records(tmp_path / "w", "train/loss")] == list(range(1, 7))
    assert "eval/accuracy" in records(tmp_path / "w")[-1]


def test_tfrecord_is_refused_with_the_command_that_converts_it(tmp_path, prepared, no_tensorflow, capsys):
    version = tmp_path / "tones" / "1.0.0"
    version.mkdir(parents=True)
    for path in prepared.iterdir():
        (version / path.name.replace("array_record", "tfrecord")).write_bytes(path.read_bytes())
    info = (version / "dataset_info.json").read_text()
    (version / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    assert main(tiny_run.arguments(tmp_path / "w", f"tfds.py:{version}", VIT)) == 2
    said = capsys.readouterr().err
    assert f"tfds convert_format --dataset_version_dir={version} --out_file_format=array_record" in said
    assert "Traceback" not in said
    assert not (tmp_path / "w").exists()
