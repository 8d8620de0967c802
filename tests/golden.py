"""What a golden is, on both sides of the comparison: how leaves are filled, which images are shown, what is measured.

A golden holds what a reference implementation computed in float64 on a small configuration that takes every branch.
Both sides fill their parameters with one deterministic function of (the reference's name, shape), so that no weights
need to be stored; running statistics come from one train-mode pass of the reference and are stored.
"""

import dataclasses
import json
import pathlib
import re
import zlib

import numpy as np

DIRECTORY = pathlib.Path(__file__).parent / "goldens"
IMAGES = 3
STATISTICS = re.compile(r"(running_mean|running_var|num_batches_tracked)$")


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      ours: our model's name; fields: the config fields that make it small.
      theirs: "timm:NAME"; "references.FAMILY:NAME" for what no package offers as it was released; or
        "official.FAMILY:NAME", a module around the authors' code that is not kept here (the case says which code);
        kwargs: what makes that one equally small.
      size: height and width of the images.
      gain: of the filled kernels; tuned so that no signal dies or saturates.
      init: fields and keywords, the same for both, that make a model small enough to compare its initialisation.
      maps: names of the reference's modules whose outputs are the pyramid's maps, where neither
        `forward_intermediates` nor `hidden_states` gives them: tensors [N, H, W, C], or tokens of a square map.
      maker: "module:class" that takes kwargs, where the function behind `theirs` takes none that make it small.
      drop_path: the rates of the authors' code at a rate of 0.3, where the reference departs from them.
      names: our name for its names of parameters, where they are not timm's.
    """

    ours: str
    fields: dict
    theirs: str
    kwargs: dict
    size: tuple = (32, 32)
    gain: float = 1.0
    init: dict = dataclasses.field(default_factory=dict)
    maps: tuple = ()
    maker: str = ""
    drop_path: tuple = ()
    names: str = ""

    @property
    def dialect(self):
        """Our name for the reference's names of parameters."""
        return self.names or ("official" if self.theirs.startswith("official.") else "timm")


def fill(name, shape, gain=1.0):
    """The value of a reference's leaf, float32: a function of its name and shape alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("bias") and len(shape) == 1:
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2 and name.endswith(("weight", "kernel")):
        values = rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("weight", "gamma", "gamma_1", "gamma_2", "scale")):
        values = rng.uniform(0.5, 1.5, shape)
    else:  # tables of positions and biases, tokens, temperatures
        values = rng.standard_normal(shape)
    return values.astype(np.float32)


def images(size, channels=3, count=IMAGES):
    """Images [N, H, W, C], float32, that differ coarsely and finely, as photographs do."""
    rng = np.random.default_rng(7)
    height, width = size
    coarse = rng.standard_normal((count, 4, 4, channels))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    fine = rng.standard_normal((count, height, width, channels))
    return (coarse[:, rows][:, :, columns] + 0.5 * fine).astype(np.float32)


def loss_weights(shape):
    """The fixed weights [N, classes] of the loss sum(logits * weights) whose gradients are compared."""
    return np.random.default_rng(11).standard_normal(shape)


def measure(name, gradient):
    """(norm, random projection) of a gradient in the reference's layout: what is stored of it."""
    gradient = np.asarray(gradient, np.float64)
    direction = np.random.default_rng(zlib.crc32(f"{name}/projection".encode())).standard_normal(gradient.shape)
    return np.linalg.norm(gradient), np.sum(gradient * direction) / np.sqrt(gradient.size)


def sample(array):
    """At most 2,000 of an array's elements, the same ones for one shape: what is stored of a large map."""
    flat = np.asarray(array).reshape(-1)
    if flat.size <= 2000:
        return flat
    return flat[np.random.default_rng(flat.size).choice(flat.size, 2000, replace=False)]


def error(ours, theirs):
    """Largest difference, as a fraction of the reference's root mean square."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, the reference has {theirs.shape}"
    return np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs**2))


def rounding(narrow, wide):
    """Root mean square of the difference, as a fraction of the reference's."""
    narrow, wide = np.asarray(narrow, np.float64), np.asarray(wide, np.float64)
    return np.sqrt(np.mean((narrow - wide) ** 2) / np.mean(wide**2))


def save(key, arrays, record):
    """Writes a golden: arrays, and a record of where they come from and what has no array."""
    DIRECTORY.mkdir(exist_ok=True)
    np.savez_compressed(DIRECTORY / f"{key}.npz", record=np.frombuffer(json.dumps(record).encode(), np.uint8), **arrays)


def load(key):
    """(arrays, record) of a golden."""
    with np.load(DIRECTORY / f"{key}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(arrays.pop("record").tobytes())


def stored():
    """Keys of the goldens that are stored."""
    return sorted(path.stem for path in DIRECTORY.glob("*.npz"))
