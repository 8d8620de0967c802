"""Two real processes of four devices each: the run of one process, and what becomes of it when one does not go on."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import several
import tiny_run
from several import FIELDS, started
from tiny_run import records, state_of
from vision_jax.train import loop, run
from vision_jax.train.checkpoint import Checkpointer


def losses(workdir):
    return np.array([record["train/loss"] for record in records(workdir, "train/loss")])


def loaded(workdir, count=2):
    """The examples that each process loaded: int [processes, steps, rows]."""
    watched = workdir.with_name(f"{workdir.name}.watched")
    files = [(watched / f"{i}.jsonl").read_text().splitlines() for i in range(count)]
    return np.array([[json.loads(line) for line in file[:20]] for file in files])


@pytest.mark.heavy
def test_two_processes_are_as_one(tmp_path, monkeypatch):
    """The same losses over four epochs, in each of which every example is loaded once, by one of the two."""
    several.run(tmp_path / "two")
    examples = loaded(tmp_path / "two")
    assert examples.shape == (2, 20, 16)
    epochs = np.sort(examples.swapaxes(0, 1).reshape(4, 160))
    assert np.array_equal(epochs, np.tile(np.arange(160), (4, 1)))
    monkeypatch.setattr(loop, "report", lambda *_: {})
    loop.train(tiny_run.config(fields=FIELDS), tmp_path / "one")
    assert len(losses(tmp_path / "two")) == 20
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5, rtol=0)
    evaluated = [records(tmp_path / name, "eval/loss")[0]["eval/loss"] for name in ("two", "one")]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)


@pytest.mark.slow
def test_devices_that_share_rows_across_processes(tmp_path, monkeypatch):
    """Features split over all eight devices: both processes load every example."""
    fields = {**FIELDS, "mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 8}
    several.run(tmp_path / "two", fields)
    one, other = loaded(tmp_path / "two")
    assert one.shape == (20, 32)
    assert np.array_equal(one, other)
    monkeypatch.setattr(loop, "report", lambda *_: {})
    loop.train(tiny_run.config(fields=fields), tmp_path / "one")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5, rtol=0)


PLACED = """
import sys

import jax
import numpy as np

from vision_jax.mesh import AXES
from vision_jax.parallel import processes
from vision_jax.parallel.sharding import batch_sharding

coordinator, number, this = (word.partition("=")[2] for word in sys.argv[1:])
processes.start(coordinator, int(number), int(this))
mesh = jax.sharding.Mesh(np.array(jax.devices())[[0, 4, 1, 2, 5, 6, 3, 7]].reshape(8, 1, 1), AXES)
rows = processes.local_rows(16, batch_sharding(mesh))
placed = processes.to_global({"row": np.array(rows)}, batch_sharding(mesh))["row"]
assert placed.shape == (16,)
for shard in placed.addressable_shards:
    assert np.array_equal(shard.data, np.arange(16)[shard.index])
print("rows", rows)
processes.end(0)
"""


@pytest.mark.slow
def test_each_row_has_its_place_on_any_mesh(tmp_path):
    """As on a torus, where the devices of a host need not follow each other on the mesh."""
    with started(tmp_path / "two", command=["-c", PLACED]) as processes:
        assert processes.finish() == [0, 0], processes.all_said()
        assert "rows [0, 1, 4, 5, 6, 7, 12, 13]" in processes.said(0)
        assert "rows [2, 3, 8, 9, 10, 11, 14, 15]" in processes.said(1)


# --- A checkpoint of eight devices, on others.


RESTORED = """
import sys

import jax
import numpy as np

import several
import tiny_run
from vision_jax.names import dotted
from vision_jax.parallel import processes
from vision_jax.train import run
from vision_jax.train.checkpoint import Checkpointer

directory, expected, *told = sys.argv[1:]
coordinator, number, this = (word.partition("=")[2] for word in told)
processes.start(coordinator, int(number), int(this))
config = tiny_run.config(fields={**several.FIELDS, "mesh.data": 1, "mesh.fsdp": 8})
expected, shards = np.load(expected), 0
with Checkpointer(directory) as saver:
    state, _ = saver.restore(run.build(config, training=True, evaluation=True).state_shapes())
for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    assert leaf.shape == expected[dotted(path)].shape
    for shard in leaf.addressable_shards:
        assert np.array_equal(shard.data, expected[dotted(path)][shard.index]), dotted(path)
        shards += shard.data.shape != leaf.shape
print(len(jax.tree.leaves(state)), "leaves,", shards, "parts of them here")
processes.end(0)
"""


@pytest.mark.slow
def test_a_checkpoint_on_fewer_devices_and_on_two_processes(tmp_path):
    def built(devices, **mesh):
        return run.build(tiny_run.config(fields={**FIELDS, **mesh}), training=True, evaluation=True, devices=devices)

    rng = np.random.default_rng(0)
    shapes = built(jax.devices()).state_shapes()
    state = jax.tree.map(lambda s: jax.device_put(rng.integers(0, 999, s.shape).astype(s.dtype), s.sharding), shapes)
    expected = tiny_run.by_name(state)
    with Checkpointer(tmp_path / "checkpoints") as saver:
        saver.save(5, state)
    for number in (2, 1):
        shapes = built(jax.devices()[:number], **{"mesh.data": 1, "mesh.fsdp": number}).state_shapes()
        with Checkpointer(tmp_path / "checkpoints") as saver:
            restored, _ = saver.restore(shapes)
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda s: s.sharding, shapes)
        tiny_run.assert_same(tiny_run.by_name(restored), expected)
    np.savez(tmp_path / "expected.npz", **expected)
    command = ["-c", RESTORED, str(tmp_path / "checkpoints"), str(tmp_path / "expected.npz")]
    with started(tmp_path / "two", command=command) as processes:
        assert processes.finish() == [0, 0], processes.all_said()
        for number in (0, 1):
            leaves, parts = re.search(r"(\d+) leaves, (\d+) parts", processes.said(number)).groups()
            assert int(leaves) == len(expected)
            assert int(parts) > 50


# --- One of them does not go on.


LONG = {**FIELDS, "total": 60, "eval.every": 60, "checkpoint.every": 3, "checkpoint.keep_last": 2}


def last_step(workdir):
    return (
        max((record["step"] for record in records(workdir)), default=0) if (workdir / "metrics.jsonl").exists() else 0
    )


def assert_same_run(workdir, undisturbed):
    tiny_run.assert_same(state_of(workdir), state_of(undisturbed))
    assert np.array_equal(losses(workdir), losses(undisturbed))
    assert records(workdir, "eval/loss")[-1]["eval/loss"] == records(undisturbed, "eval/loss")[-1]["eval/loss"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "w"
    several.run(workdir, LONG)
    assert len(losses(workdir)) == 60
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed(tmp_path, undisturbed, victim):
    """The other ends within a minute and says how to go on; and so it does, bit for bit."""
    workdir = tmp_path / "w"
    with started(workdir, LONG) as processes:
        processes.wait_for(lambda: last_step(workdir) >= 10)
        processes.processes[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        codes = processes.finish(60)
        print(f"ended {time.monotonic() - began:.1f} s after process {victim} was killed")
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] != 0
        for number in (0, 1):
            assert processes.last_word(number).startswith(f"process {number} of 2 has ended abruptly")
            assert "start all processes again with the same command" in processes.last_word(number)
    assert 3 <= last_step(workdir) < 60
    assert "resuming from step" in several.run(workdir, LONG)
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_one_is_silent(tmp_path):
    """As a machine that is cut off, or a device that hangs: nothing fails, but the heartbeat is missed."""
    workdir = tmp_path / "w"
    with started(workdir, LONG) as processes:
        processes.wait_for(lambda: last_step(workdir) >= 3)
        stopped, other = processes.processes[1], processes.processes[0]
        stopped.send_signal(signal.SIGSTOP)
        assert other.wait(60) != 0
        assert processes.last_word(0).startswith("process 0 of 2 has ended abruptly")


@pytest.mark.slow
def test_one_is_told_to_stop(tmp_path, undisturbed):
    """All save the same step and end well. The rest takes as many devices; or half, and twice the microbatches."""
    workdir = tmp_path / "w"
    with started(workdir, LONG) as processes:
        processes.wait_for(lambda: last_step(workdir) >= 10)
        processes.processes[1].send_signal(signal.SIGTERM)
        assert processes.finish() == [0, 0]
        step = int(state_of(workdir, "step")["step"])
        assert 10 <= step < 60
        assert f"asked to stop: saved step {step} of 60" in processes.said(0)
        assert "ended abruptly" not in processes.all_said()
    assert last_step(workdir) == step
    fewer = shutil.copytree(workdir, tmp_path / "fewer")
    said = several.run(fewer, {**LONG, "mesh.data": 1, "optim.device_batch": 4}, count=1)
    assert f"resuming from step {step}" in said
    assert "optim.accumulate: 1 -> 2" in said
    np.testing.assert_allclose(losses(fewer), losses(undisturbed), atol=1e-5, rtol=0)
    several.run(workdir, LONG)
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_one_is_told_to_stop_in_evaluation(tmp_path):
    """Which all give up."""
    many = {"eval.every": 5, "eval.batch_size": 8, "eval.options": "{'num_examples': 9600}"}
    with started(tmp_path / "w", {**LONG, **many}) as processes:
        processes.wait_for(lambda: last_step(tmp_path / "w") >= 5)
        time.sleep(1)
        processes.processes[1].send_signal(signal.SIGTERM)
        assert processes.finish() == [0, 0]
        assert "asked to stop: saved step 5 of 60" in processes.said(0)
    assert int(state_of(tmp_path / "w", "step")["step"]) == 5
    assert not records(tmp_path / "w", "eval/loss")


@pytest.mark.parametrize(
    ("workdir", "fields", "says"),
    [
        pytest.param(
            "begun",
            tiny_run.overrides({"optim.lr": 0.5, "data.options.num_examples": 165}),
            [
                "config.optim.lr is 0.001 in process 0, but 0.5 in process 1",
                "config.data.options.num_examples is 160 in process 0, but 165 in process 1",
                "the list of saved steps is [] in process 0, but [7] in process 1",
            ],
            marks=pytest.mark.heavy,
        ),
        pytest.param(
            "alone", [], ["which all share, is 'seen' in process 0, but 'not seen' in"], marks=pytest.mark.slow
        ),
    ],
)
def test_they_differ(tmp_path, workdir, fields, says):
    (tmp_path / "begun" / "checkpoints" / "7").mkdir(parents=True)
    with started(tmp_path / "w", differing={1: ["--workdir", str(tmp_path / workdir), *fields]}) as processes:
        assert processes.finish(60) == [2, 2]
        for number in (0, 1):
            errors = [line for line in processes.said(number).splitlines() if line.startswith("error: ")]
            assert len(errors) == 1
            assert all(part in errors[0] for part in says), errors[0]
            assert "Traceback" not in processes.said(number)
            assert "abruptly" not in processes.said(number)
    assert not list((tmp_path / "w").rglob("*"))


def test_there_is_nothing_to_find(tmp_path):
    with started(tmp_path / "w", count=1, differing={0: ["--distributed"]}) as processes:
        assert processes.finish(60) == [2]
        assert processes.said(0).startswith("error: the processes of the run have not found each other, and JAX finds")
        assert processes.said(0).count("\n") == 1


@pytest.mark.slow
def test_one_goes_wrong(tmp_path):
    """An error in one process alone: it says so and ends, and the other, which waits for it, is ended too."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    raise ValueError('no such thing here')\n")
    with started(tmp_path / "w", differing={1: ["--config", str(recipe)]}) as processes:
        codes = processes.finish(60)
        assert codes[1] == 2
        assert "error: " in processes.said(1)
        assert "no such thing here" in processes.said(1)
        assert codes[0] != 0
        assert processes.last_word(0).startswith("process 0 of 2 has ended abruptly")
