"""What processes tell each other, in one process; tests/train/test_processes.py starts real ones."""

import json

import jax
import numpy as np
import pytest

from vision_jax.errors import InputError
from vision_jax.mesh import make_mesh
from vision_jax.parallel import processes
from vision_jax.parallel.sharding import batch_sharding, replicated


@pytest.fixture
def told_by(monkeypatch):
    """Has other processes tell such facts; this one is the first."""

    def others(*facts):
        monkeypatch.setattr(jax, "process_count", lambda: 1 + len(facts))
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(processes, "_gather", lambda text: [text, *map(json.dumps, facts)])

    return others


def test_agreed(told_by):
    processes.agree({"lr": 1})
    told_by({"lr": 1, "ops": ["flip"]}, {"ops": ["flip"], "lr": 1})
    processes.agree({"ops": ("flip",), "lr": 1})


def test_what_differs_is_named_and_where(told_by):
    told_by({"lr": 1, "jax": "0.12"}, {"lr": 2, "jax": "0.10"}, {"lr": 2, "jax": "0.10", "extra": None})
    with pytest.raises(InputError) as raised:
        processes.agree({"lr": 1, "jax": "0.10"})
    assert str(raised.value).partition(": ")[2].split("; ") == [
        "extra is none in processes 0, 1, 2, but None in process 3",
        "jax is '0.10' in processes 0, 2, 3, but '0.12' in process 1",
        "lr is 1 in processes 0, 1, but 2 in processes 2, 3",
    ]
    told_by(*[dict.fromkeys("abcdefg", 1)] * 20)
    with pytest.raises(
        InputError, match=r": a is 0 in process 0, but 1 in processes 1, .*, 8, \.\.\.; .*; and 2 more$"
    ):
        processes.agree(dict.fromkeys("abcdefg", 0))


def test_one_of_several_that_was_not_told_so(told_by, monkeypatch):
    told_by({}, {}, {})
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    with pytest.raises(InputError, match="one of 4 processes: start each of them with --distributed"):
        processes.agree({})


def test_rows_of_this_process():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert processes.local_rows(8, batch_sharding(mesh)) == list(range(8))
    assert processes.local_rows(8, batch_sharding(make_mesh(data=2, devices=jax.devices()[:2]))) == list(range(8))


def test_placed_whole_or_split():
    mesh = make_mesh(data=2, fsdp=4)
    tree = {"a": {"b": np.arange(8.0)}, "c": np.int32(3), "d": {}}
    split = batch_sharding(mesh)
    placed = processes.place(tree, {"a": split, "c": replicated(mesh), "d": split})
    assert placed["a"]["b"].sharding == split
    assert placed["c"].sharding.is_fully_replicated
    assert placed["d"] == {}
    np.testing.assert_array_equal(placed["a"]["b"], tree["a"]["b"])
