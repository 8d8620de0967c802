"""Where examples come from. A source is read at random, by index:

    len(source)          number of examples
    source[i]            {"image": encoded bytes or uint8 [H, W, C], "label": int}
    source.class_names   tuple of strings, one a label
    source.name(i)       what to call example i in a message: a file's path, "digits[17]"

It may be pickled (it travels to worker processes) and read from several threads.
"""

import inspect

from vision_jax.data.sources.digits import Digits
from vision_jax.data.sources.folder import Folder
from vision_jax.data.sources.synthetic import Synthetic
from vision_jax.data.sources.tfds import Tfds
from vision_jax.errors import InputError, unknown

SOURCES = {"digits": Digits, "folder": Folder, "synthetic": Synthetic, "tfds": Tfds}


def load_source(name, split, **options):
    """Opens a source.

    Args:
      name: one of digits, folder, synthetic, tfds.
      split: "train", "test", ...; which ones exist is the source's matter.
      **options: the source's own: folder `root`; tfds `dataset` and `data_dir`, or `builder_dir`; synthetic
        `image_size`, `num_classes`, `num_examples`, `channels`.

    Raises:
      InputError: unknown source, split or option, or nothing readable where the options point.
    """
    check_source(name, options)
    return SOURCES[name](split, **options)


def check_source(name, options):
    """Raises InputError unless there is such a source, with such options; opens nothing."""
    if name not in SOURCES:
        raise unknown("data source", name, SOURCES)
    parameters = inspect.signature(SOURCES[name]).parameters
    for option in options:
        if option not in parameters:
            raise unknown(f"option of data source {name}", option, [p for p in parameters if p != "split"])
    for option, parameter in parameters.items():
        if option not in options and option != "split" and parameter.default is inspect.Parameter.empty:
            raise InputError(f"data source {name} needs the option {option!r}")
