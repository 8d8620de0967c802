"""Weights out, under a reference's names and in its layouts."""

import pathlib

import numpy as np

from vision_jax.errors import InputError
from vision_jax.weights.convert import dialect, state_dict
from vision_jax.weights.layouts import TORCH


def save_weights(model, path, names="timm"):
    """Writes a model's parameters and statistics to a file.

    With torch names the reference loads it with `strict=True`.

    Args:
      model: a concrete model.
      path: a `.safetensors` file, or `.npz`.
      names: as in `state_dict`.

    Raises:
      InputError: another kind of file, a directory that is not there, unknown names, or an abstract model.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"path={str(path)!r}: a file named .safetensors or .npz")
    if not path.parent.is_dir():
        raise InputError(f"path={str(path)!r}: {path.parent} is not a directory")
    arrays = state_dict(model, names)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    from safetensors.numpy import save_file

    save_file(arrays, path, {"format": "pt" if dialect(model, names).layout is TORCH else "flax"})
