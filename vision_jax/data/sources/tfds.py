"""Data sets prepared by TensorFlow Datasets, read at random from ArrayRecord files, without TensorFlow."""

import functools
import re
from pathlib import Path

from vision_jax.errors import InputError, unknown


class Tfds:
    """Encoded images of a prepared data set.

    Args:
      split: a name, or TFDS's slicing: "train[:90%]".
      dataset: TFDS's name, "imagenet2012" or "cats_vs_dogs:4.0.1"; looked up below `data_dir`.
      data_dir: where TFDS keeps its data sets; its own default when None.
      builder_dir: instead of both, the directory of one version, that with dataset_info.json.
      image_key, label_key: names of the features.
    """

    def __init__(self, split, dataset=None, data_dir=None, builder_dir=None, image_key="image", label_key="label"):
        if (dataset is None) == (builder_dir is None):
            raise InputError(
                f"tfds: give either dataset (and data_dir) or builder_dir: given {dataset!r} and {builder_dir!r}"
            )
        self._builder_dir = str(Path(builder_dir).expanduser()) if builder_dir else _find(dataset, data_dir)
        self._split = split
        self._keys = image_key, label_key
        info = _open(self._builder_dir).info
        if "array_record" not in {f.value for f in info.available_file_formats()}:
            raise InputError(
                f"tfds: {self._builder_dir} is stored as {info.file_format.value}, which cannot be read at random."
                " Convert it once, in any environment with tensorflow and tensorflow-datasets: tfds convert_format"
                f" --dataset_version_dir={self._builder_dir} --out_file_format=array_record"
            )
        for name in re.findall(r"(?:^|\+)\s*([^\s\[\]+]+)", split):
            if name not in info.splits:
                raise unknown(f"split of {info.full_name}", name, info.splits)
        for key in self._keys:
            if key not in info.features:
                raise unknown(f"feature of {info.full_name}", key, info.features)
        names = getattr(info.features[label_key], "names", None)
        if names is None:
            raise InputError(
                f"tfds: {label_key!r} of {info.full_name} is not a class label: {info.features[label_key]}"
            )
        self.class_names = tuple(names)
        self._full_name = info.full_name
        self._length = len(self._records)

    @functools.cached_property
    def _records(self):
        import tensorflow_datasets as tfds

        image_key, _ = self._keys
        try:  # our own decoding is 6 times faster than TFDS's, and crops before it resizes
            return _open(self._builder_dir).as_data_source(
                self._split, decoders={image_key: tfds.decode.SkipDecoding()}
            )
        except ValueError as error:
            raise InputError(f"tfds: split {self._split!r} of {self._full_name}: {error}") from error

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_records"}  # open files stay here; workers open theirs

    def __len__(self):
        return self._length

    def __getitem__(self, i):
        record = self._records[i]
        image_key, label_key = self._keys
        return {"image": record[image_key], "label": int(record[label_key])}

    def name(self, i):
        """ "mnist/3.0.1/train[17]"."""
        return f"{self._full_name}/{self._split}[{i}]"


def _open(builder_dir):
    import tensorflow_datasets as tfds

    if not Path(builder_dir, "dataset_info.json").is_file():
        raise InputError(f"tfds: no prepared data set in {builder_dir}: it has no dataset_info.json")
    return tfds.builder_from_directory(builder_dir)


def _find(dataset, data_dir):
    """The directory of a prepared data set with TFDS's name, the newest version unless the name says which."""
    import tensorflow_datasets as tfds

    try:
        builder_dir = str(tfds.builder(dataset, data_dir=data_dir).data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise InputError(f"tfds: dataset {dataset!r}: {str(error).strip().splitlines()[0]}") from error
    if not Path(builder_dir, "dataset_info.json").is_file():
        where = f" --data_dir={data_dir}" if data_dir else ""
        raise InputError(
            f"tfds: {dataset!r} is not prepared in {builder_dir}. Prepare it once, in any environment with"
            f" tensorflow and tensorflow-datasets: tfds build {dataset} --file_format=array_record{where}"
        )
    return builder_dir
