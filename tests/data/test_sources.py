import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from vision_jax.data import load_source
from vision_jax.errors import InputError


def write_images(folder, count=2, suffix=".png"):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((6, 8, 3), 10 * i, np.uint8)).save(folder / f"{i}{suffix}")


def refused(said, *args, **options):
    with pytest.raises(InputError) as caught:
        load_source(*args, **options)
    assert said in str(caught.value)


def test_unknown_names():
    refused("did you mean 'digits'", "digit", "train")
    refused("unknown split of digits 'trian': did you mean 'train'", "digits", "trian")
    refused("did you mean 'image_size'", "synthetic", "train", img_size=3)
    refused("needs the option 'root'", "folder", "train")


def test_digits():
    from sklearn.datasets import load_digits

    train, test = load_source("digits", "train"), load_source("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    names = [s.name(i) for s in (train, test) for i in range(len(s))]
    assert sorted(names) == sorted(f"digits[{i}]" for i in range(1797))
    assert train.class_names == tuple("0123456789")
    share = np.bincount([e["label"] for e in test]) / np.bincount([e["label"] for e in train])
    assert np.abs(share - 0.25).max() < 0.01
    reference = load_digits()
    for i in (0, 17, 359):
        original = int(test.name(i)[len("digits[") : -1])
        assert test[i]["label"] == reference.target[original]
        assert test[i]["image"].dtype == np.uint8
        assert test[i]["image"].shape == (8, 8, 1)
        assert np.abs(test[i]["image"][..., 0] - reference.images[original] * 255 / 16).max() <= 0.5


def test_synthetic_is_a_function_of_split_and_index():
    options = {"image_size": 6, "num_classes": 3, "num_examples": 5, "channels": 1}
    train, again = load_source("synthetic", "train", **options), load_source("synthetic", "train", **options)
    test = load_source("synthetic", "test", **options)
    assert len(train) == 5
    assert train.class_names == ("class 0", "class 1", "class 2")
    assert [e["label"] for e in train] == [0, 1, 2, 0, 1]
    assert train[1]["image"].shape == (6, 6, 1)
    for i in range(5):
        assert np.array_equal(train[i]["image"], again[i]["image"])
        assert not np.array_equal(train[i]["image"], test[i]["image"])
    assert not np.array_equal(train[0]["image"], train[3]["image"])
    refused("num_examples is at least 1", "synthetic", "train", num_examples=0)


def test_folder_with_splits(tmp_path):
    for split, name in (("train", "cat"), ("train", "ant"), ("train", "dog"), ("val", "dog"), ("val", "ant")):
        write_images(tmp_path / split / name)
    write_images(tmp_path / "train" / "cat" / "more", 1, ".JPEG")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / "._0.png").write_text("a Mac's shadow file")
    (tmp_path / "train" / ".hidden").mkdir()
    train, val = (pickle.loads(pickle.dumps(load_source("folder", s, root=tmp_path))) for s in ("train", "val"))
    assert train.class_names == val.class_names == ("ant", "cat", "dog")
    assert [e["label"] for e in map(train.__getitem__, range(len(train)))] == [0, 0, 1, 1, 1, 2, 2]
    assert [val[i]["label"] for i in range(len(val))] == [0, 0, 2, 2]
    assert train.name(4) == str(tmp_path / "train" / "cat" / "more" / "0.JPEG")
    assert train[4]["image"] == (tmp_path / "train" / "cat" / "more" / "0.JPEG").read_bytes()
    refused("unknown split of", "folder", "vall", root=tmp_path)
    refused("did you mean 'val'", "folder", "vall", root=tmp_path)
    write_images(tmp_path / "val" / "eel")
    refused("classes that", "folder", "val", root=tmp_path)


def test_folder_of_classes_has_the_split_all(tmp_path):
    write_images(tmp_path / "train")  # a class of trains
    write_images(tmp_path / "plane")
    source = load_source("folder", "all", root=tmp_path)
    assert source.class_names == ("plane", "train")
    assert len(source) == 4
    refused('its one split is "all"', "folder", "train", root=tmp_path)


def test_folder_errors(tmp_path):
    refused("does not exist", "folder", "train", root=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    refused("is not a directory", "folder", "train", root=tmp_path / "file")
    (tmp_path / "empty").mkdir()
    refused("no class folders", "folder", "all", root=tmp_path / "empty")
    write_images(tmp_path / "some" / "cat")
    (tmp_path / "some" / "dog").mkdir()
    refused("no images", "folder", "all", root=tmp_path / "some")
    refused("dog", "folder", "all", root=tmp_path / "some")


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 6, 3), value, np.uint8)).save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS data set in ArrayRecord files, 7 training and 3 test images, and the directory of its version."""
    import tensorflow_datasets as tfds

    class Shades(tfds.core.GeneratorBasedBuilder):
        """Grey images labelled dark and light."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=SHADES),
            }
            features["number"] = tfds.features.Scalar(np.int64)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(7)), "test": self._generate_examples(range(7, 10))}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"image": png(20 * i), "label": SHADES[i // 5], "number": i}

    data_dir = tmp_path_factory.mktemp("tfds")
    Shades(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir / "shades" / "1.0.0"


SHADES = ("dark", "light")


def test_tfds_reads_array_record_without_tensorflow(prepared):
    for options in ({"builder_dir": prepared}, {"dataset": "shades", "data_dir": str(prepared.parents[1])}):
        source = pickle.loads(pickle.dumps(load_source("tfds", "train", **options)))
        assert len(source) == 7
        assert source.class_names == SHADES
        assert source.name(3) == "shades/1.0.0/train[3]"
        values = set()
        for i in range(7):
            example = source[i]
            assert isinstance(example["image"], bytes)
            value = int(np.asarray(Image.open(io.BytesIO(example["image"])))[0, 0, 0])
            assert example["label"] == value // 100
            values.add(value)
        assert values == {20 * i for i in range(7)}
    assert len(load_source("tfds", "train[:3]+test", builder_dir=prepared)) == 6
    assert "tensorflow" not in sys.modules


def test_tfds_errors(prepared, tmp_path):
    refused("did you mean 'train'", "tfds", "trian", builder_dir=prepared)
    refused("did you mean 'train'", "tfds", "test+trian[:3]", builder_dir=prepared)
    refused("split 'train[:'", "tfds", "train[:", builder_dir=prepared)
    refused("did you mean 'label'", "tfds", "train", builder_dir=prepared, label_key="labels")
    refused("is not a class label", "tfds", "train", builder_dir=prepared, label_key="number")
    refused("no dataset_info.json", "tfds", "train", builder_dir=tmp_path)
    refused("either dataset", "tfds", "train")
    refused("'no_such_set'", "tfds", "train", dataset="no_such_set", data_dir=str(tmp_path))
    refused("tfds build mnist --file_format=array_record", "tfds", "train", dataset="mnist", data_dir=str(tmp_path))


def test_tfds_refuses_tfrecord_and_says_how_to_convert(prepared, tmp_path):
    version = tmp_path / "shades" / "1.0.0"
    version.mkdir(parents=True)
    for path in prepared.iterdir():
        (version / path.name.replace("array_record", "tfrecord")).write_bytes(path.read_bytes())
    info = json.loads((version / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    text = json.dumps(info).replace("array_record", "tfrecord").replace("ARRAY_RECORD", "TFRECORD")
    (version / "dataset_info.json").write_text(text)
    refused(
        f"tfds convert_format --dataset_version_dir={version} --out_file_format=array_record",
        "tfds",
        "train",
        builder_dir=version,
    )


def test_folder_holds_out_a_share_of_each_class(tmp_path):
    for name, count in (("cat", 20), ("dog", 11)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i:02d}.png")
    splits = {s: load_source("folder", s, root=tmp_path, holdout=0.1) for s in ("train", "val")}
    labels = {s: [source[i]["label"] for i in range(len(source))] for s, source in splits.items()}
    assert {s: (found.count(0), found.count(1)) for s, found in labels.items()} == {"train": (18, 9), "val": (2, 2)}
    files = [source.name(i) for source in splits.values() for i in range(len(source))]
    assert len(set(files)) == 31
    with pytest.raises(InputError, match=r"did you mean 'train'"):
        load_source("folder", "trian", root=tmp_path, holdout=0.1)
    with pytest.raises(InputError, match="holdout"):
        load_source("folder", "train", root=tmp_path, holdout=0.7)
