"""Where weights come from: a file, a directory, a hub id or a mapping -> {name: numpy array}."""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  teaches numpy, and so safetensors, the name bfloat16
import numpy as np

from vision_jax.errors import InputError
from vision_jax.weights import linen_vit

HUB = "hf-hub:"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".tar"}


def read(source):
    """Reads all arrays of a source.

    Args:
      source: the path of a `.safetensors` or `.npz` file; of a directory of `.safetensors` files (with an index where
        the weights are in shards); "hf-hub:org/name" or "hf-hub:org/name@revision"; or a mapping name -> array, as
        torch's `state_dict()`.

    Returns:
      {name: numpy array}.

    Raises:
      InputError: no such file, a pickle, or a hub that cannot be reached.
    """
    if isinstance(source, Mapping):
        return {str(name): _numpy(name, value) for name, value in source.items()}
    if isinstance(source, str) and source.startswith(HUB):
        return _read_files(_download(source[len(HUB) :]))
    if not isinstance(source, str | pathlib.PurePath):
        kinds = f"a path, {HUB!r} with a repository's id, or a mapping name -> array"
        raise InputError(f"source is a {type(source).__name__}: {kinds} is wanted")
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        raise InputError(f"source={str(source)!r}: no such file or directory")
    return _read_files(_weight_files(path) if path.is_dir() else [path])


def _numpy(name, value):
    if isinstance(value, Mapping):
        raise InputError(f"source[{name!r}] is itself a mapping: pass source[{name!r}]")
    if hasattr(value, "detach"):  # a torch tensor: numpy knows neither gradients nor torch's bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _weight_files(folder):
    """The safetensors files of a directory, those that its index names where it has one."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        return [folder / shard for shard in _shards(indices[0])]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise InputError(f"source={str(folder)!r} has no .safetensors file; it holds {held}")
    return files


def _shards(index):
    return sorted(set(json.loads(pathlib.Path(index).read_text())["weight_map"].values()))


def _read_files(paths):
    arrays = {}
    for path in paths:
        for name, array in _read_file(path).items():
            if name in arrays:
                raise InputError(f"{name} stands in {path} and in another file beside it: pass the path of one of them")
            arrays[name] = array
    return arrays


def _read_file(path):
    path = pathlib.Path(path)
    if path.suffix in _PICKLES:
        command = f"save_file(torch.load({path.name!r}, weights_only=True), {path.stem + '.safetensors'!r})"
        raise InputError(
            f"source={str(path)!r} is a pickle, which can run any code when opened, and is not read. "
            f"Convert it once to safetensors: from safetensors.torch import save_file; {command}"
        )
    if not path.exists():
        raise InputError(f"{path} is named by the index beside it, but is not there")
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.numpy

        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"source={str(path)!r} is not a whole safetensors file: {error}") from error
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return linen_vit.canonical(dict(arrays))
        except ValueError as error:
            raise InputError(f"source={str(path)!r} is not a file of plain arrays: {error}") from error
    raise InputError(f"source={str(path)!r}: a .safetensors or .npz file, or a directory of .safetensors files")


def _download(repo):
    """Paths of a hub repository's files, from the local cache where they are there."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo_id, _, revision = repo.partition("@")

    def fetch(filename):
        return huggingface_hub.hf_hub_download(repo_id, filename, revision=revision or None)

    try:
        try:
            return [fetch(FILE)]
        except LocalEntryNotFoundError:  # also an EntryNotFoundError, but it means: no connection
            raise
        except EntryNotFoundError:
            return [fetch(shard) for shard in _shards(fetch(INDEX))]
    except Exception as error:  # the client raises its own, the transport's and the operating system's
        url = f"https://huggingface.co/{repo_id}/resolve/{revision or 'main'}/{FILE}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"source='{HUB}{repo}' cannot be fetched ({reason}). Fetch {url} by hand and pass the file's path "
            f"in its place: load_weights(model, {FILE!r})"
        ) from error
