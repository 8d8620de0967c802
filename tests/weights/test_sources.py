"""Files, directories, the hub and mappings."""

import json
import pathlib

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import safetensors
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import save_file

import vision_jax as vj
from vision_jax.weights.sources import read

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}


def assert_read(source, arrays=ARRAYS):
    out = read(source)
    assert out.keys() == arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(out[name], arrays[name])
        assert out[name].dtype == arrays[name].dtype


def test_safetensors_file(tmp_path):
    save_file(ARRAYS, tmp_path / "w.safetensors")
    assert_read(tmp_path / "w.safetensors")
    assert_read(str(tmp_path / "w.safetensors"))


def test_bfloat16(tmp_path):
    arrays = {"a": np.arange(3).astype(ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "w.safetensors")
    assert_read(tmp_path / "w.safetensors", arrays)


def test_npz_file(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    assert_read(tmp_path / "w.npz")


def test_directory(tmp_path):
    save_file({"a": ARRAYS["a"]}, tmp_path / "1.safetensors")
    save_file({"b": ARRAYS["b"]}, tmp_path / "2.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert_read(tmp_path)
    save_file(ARRAYS, tmp_path / "3.safetensors")
    with pytest.raises(vj.InputError, match="another file beside it"):
        read(tmp_path)


def shard(folder):
    save_file({"a": ARRAYS["a"]}, folder / "x-1.safetensors")
    save_file({"b": ARRAYS["b"]}, folder / "x-2.safetensors")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_directory_with_index(tmp_path):
    shard(tmp_path)
    save_file(ARRAYS, tmp_path / "other.safetensors")
    assert_read(tmp_path)
    (tmp_path / "x-2.safetensors").unlink()
    with pytest.raises(vj.InputError, match=r"x-2.safetensors is named by the index"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "pytorch_model.bin", "w.pt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(vj.InputError, match=r"is a pickle(.|\n)*save_file\(torch.load"):
        read(tmp_path / name)
    with pytest.raises(vj.InputError, match=f"has no .safetensors file; it holds {name}"):
        read(tmp_path)


def test_pickled_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{}], dtype=object))
    with pytest.raises(vj.InputError, match="not a file of plain arrays"):
        read(tmp_path / "w.npz")


@pytest.mark.parametrize(("source", "message"), [
    ("nowhere/w.safetensors", "no such file"), (3, "source is a int"), ({"model": ARRAYS}, r"pass source\['model'\]"),
])  # fmt: skip
def test_what_is_no_source(source, message):
    with pytest.raises(vj.InputError, match=message):
        read(source)


def test_files_of_other_kinds_and_damaged_ones(tmp_path):
    (tmp_path / "w.txt").write_text("hello")
    (tmp_path / "w.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(vj.InputError, match=r"a \.safetensors or \.npz file"):
        read(tmp_path / "w.txt")
    with pytest.raises(vj.InputError, match="not a whole safetensors file"):
        read(tmp_path / "w.safetensors")


class Tensor:
    """As much of a torch tensor as reading one needs."""

    def __init__(self, array, dtype="torch.float32", log=()):
        self.array, self.dtype, self.log = array, dtype, log

    def detach(self):
        return Tensor(self.array, self.dtype, (*self.log, "detach"))

    def cpu(self):
        return Tensor(self.array, self.dtype, (*self.log, "cpu"))

    def float(self):
        return Tensor(self.array.astype(np.float32), "torch.float32", self.log)

    def __array__(self, dtype=None, copy=None):
        assert self.log == ("detach", "cpu")
        assert self.dtype != "torch.bfloat16"
        return self.array


def test_tensors():
    out = read({"a": Tensor(ARRAYS["a"]), "b": Tensor(np.ones(2, ml_dtypes.bfloat16), "torch.bfloat16")})
    np.testing.assert_array_equal(out["a"], ARRAYS["a"])
    assert out["b"].dtype == np.float32


def test_hub(tmp_path, monkeypatch):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename, revision=None):
        asked.append((repo_id, filename, revision))
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_read("hf-hub:org/name@v2")
    assert asked == [("org/name", "model.safetensors", "v2")]
    (tmp_path / "model.safetensors").unlink()
    shard(tmp_path)
    assert_read("hf-hub:org/name")


def test_hub_out_of_reach_names_the_file(monkeypatch):
    def download(repo_id, filename, revision=None):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(vj.InputError) as error:
        read("hf-hub:timm/vit_tiny")
    assert "no connection" in str(error.value)
    assert "https://huggingface.co/timm/vit_tiny/resolve/main/model.safetensors" in str(error.value)
    assert "load_weights(model, 'model.safetensors')" in str(error.value)


def test_saved_files_say_their_format(tmp_path):
    model = vj.create_model("resnet18", depths=(1,), embed_dims=(4,), num_classes=2)
    vj.save_weights(model, tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("path", ["w.pth", "nowhere/w.safetensors"])
def test_where_nothing_can_be_saved(tmp_path, path):
    model = vj.create_model("resnet18", depths=(1,), embed_dims=(4,), num_classes=2)
    with pytest.raises(vj.InputError, match="path="):
        vj.save_weights(model, pathlib.Path(tmp_path) / path)
