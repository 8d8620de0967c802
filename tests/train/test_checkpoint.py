import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tiny import unstack
from vision_jax.errors import InputError
from vision_jax.train import orbax_errors
from vision_jax.train.checkpoint import Checkpointer, read
from vision_jax.train.named_state import from_named, targets, to_named

ROOT = pathlib.Path(__file__).resolve().parents[2]


def placed(abstract, sharding=None):
    """Shapes on the first device, or as `sharding(shape)` says."""
    sharding = sharding or (lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)) if hasattr(x, "dtype") else x, abstract
    )


def make_params(seed=0, classes=10, stacked=True):
    rng = np.random.default_rng(seed)
    blocks = {"mlp": {"kernel": jnp.array(rng.normal(size=(3, 8, 16)), jnp.float32)}, "scale": jnp.ones((3, 8))}
    params = {
        "patch_embed": {"kernel": jnp.array(rng.normal(size=(16, 8)), jnp.bfloat16)},
        "blocks": {"stacked": blocks},
        "head": {"kernel": jnp.array(rng.normal(size=(8, classes)), jnp.float32)},
    }
    return params if stacked else unstack(params)


def make_state(seed=0, classes=10, stacked=True):
    params = make_params(seed, classes, stacked)
    return {
        "step": jnp.int32(7),
        "params": params,
        "batch_stats": {"norm": {"mean": jnp.arange(4.0)}},
        "opt_state": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, mu_dtype=jnp.bfloat16)).init(params),
        "ema": jax.tree.map(lambda x: x * 2, params),
        "data_position": 2**40 + seed,
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        name = jax.tree_util.keystr(path)
        assert type(x) is type(y), name
        if hasattr(x, "dtype"):
            assert x.dtype == y.dtype, name
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name
        else:
            assert x == y, name


def files_of(directory, step):
    """The files of a checkpoint's arrays, the largest first."""
    return sorted(
        (f for f in (directory / str(step) / "state").rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size
    )


def filled(directory, steps, **kwargs):
    with Checkpointer(directory, **kwargs) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step))
    return directory


def test_round_trip_is_exact(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.save(7, state)
        restored, step = checkpointer.restore(placed(state))
        assert step == checkpointer.latest_step() == 7
    assert_same(restored, state)
    assert isinstance(restored["opt_state"][1][0], optax.ScaleByAdamState)


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    x = jnp.arange(2_000_000, dtype=jnp.float32)
    expected = np.array(x)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {"x": x}})
        y = jax.jit(lambda x: x * 0, donate_argnums=0)(x)
        del x
        restored, _ = checkpointer.restore(placed({"params": {"x": y}}))
    np.testing.assert_array_equal(restored["params"]["x"], expected)


@pytest.mark.parametrize("saved_stacked", [True, False])
def test_scanned_and_unrolled_restore_each_other(tmp_path, saved_stacked):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(stacked=saved_stacked))
        other = make_state(stacked=not saved_stacked)
        restored, _ = checkpointer.restore(placed(other))
    assert_same(restored, other)
    assert "params.blocks.2.mlp.kernel" in read(tmp_path)


def test_names_of_a_state_in_named_tuples():
    class Trace(NamedTuple):
        count: Any
        trace: Any

    state = (Trace(np.int64(3), {"stacked": {"w": np.arange(4.0).reshape(2, 2)}}),)
    named = to_named(state)
    assert list(named) == ["0.count", "0.trace.0.w", "0.trace.1.w"]
    assert_same(from_named(named, state), state)
    with pytest.raises(InputError, match=r"both called 'a\.b'"):
        to_named({"a": {"b": 1}, "a.b": 2})
    with pytest.raises(InputError, match="'params' has no sharding"):
        targets({"params": jax.ShapeDtypeStruct((2,), jnp.float32)})


@pytest.mark.parametrize("damage", ["truncate", "delete", "list of arrays", "metrics"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, caplog, damage):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, make_state(step), {"accuracy": step})
    if damage == "truncate":
        for file in files_of(tmp_path, 3)[:3]:
            os.truncate(file, file.stat().st_size // 2)
    elif damage == "delete":
        files_of(tmp_path, 3)[0].unlink()
    elif damage == "list of arrays":
        os.truncate(tmp_path / "3" / "state" / "_METADATA", 20)
    else:
        os.truncate(tmp_path / "3" / "metrics" / "metrics", 5)

    with caplog.at_level(logging.WARNING), Checkpointer(tmp_path) as checkpointer:
        restored, step = checkpointer.restore(placed(make_state()))
        assert step == 2
        assert_same(restored, make_state(2))
        messages = [r.getMessage() for r in caplog.records if r.name.startswith("vision_jax")]
        assert any("checkpoint 3 " in m for m in messages)
        assert max(map(len, messages)) < 500
        assert not any("\n" in m for m in messages)
        # The run goes on and saves the same step again, whole this time.
        assert checkpointer.steps() == [2]
        assert checkpointer.save(3, make_state(30))
        assert_same(checkpointer.restore(placed(make_state()))[0], make_state(30))
    assert (tmp_path / "3.damaged").is_dir()


DAMAGED = """
import os, pathlib, sys, jax, jax.numpy as jnp
from vision_jax.train.checkpoint import Checkpointer
state = {str(i): jax.random.normal(jax.random.key(i), (500, 500)) for i in range(20)}
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, state)
    checkpointer.save(2, state)
    checkpointer.wait()
    for file in pathlib.Path(sys.argv[1], "2", "state").glob("ocdbt.process_0/d/*"):
        os.truncate(file, file.stat().st_size // 2)
    print(checkpointer.restore(state)[1])
"""


def test_damage_is_told_in_few_words(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", DAMAGED, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
    lines = done.stderr.splitlines()
    assert ["cannot be read" in line or "renamed to" in line for line in lines] == [True, True], done.stderr[:3000]
    assert max(map(len, lines)) < 500


LATE = """
import asyncio, sys
from orbax.checkpoint._src.path import temporary_paths
from vision_jax.train.checkpoint import Checkpointer

found = temporary_paths.all_temporary_paths

async def found_late(*args, **options):
    await asyncio.sleep(1)
    return await found(*args, **options)

temporary_paths.all_temporary_paths = found_late
with Checkpointer(sys.argv[1]):
    pass
"""


def test_what_outlives_the_process_says_nothing(tmp_path):
    """Orbax's threads clear away what a killed run left, and do not notice that it is over."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("said", ["Event loop is closed", "cannot schedule new futures after shutdown"])
def test_reads_that_end_late_are_not_told(said):
    orbax_errors.ignore_late_work()
    for name, error, told in (("absl", said, False), ("asyncio", said, False), ("absl", "disk full", True)):
        found = (RuntimeError, RuntimeError(error), None)
        record = logging.LogRecord(name, logging.ERROR, "future.py", 1, "raised", (), found)
        assert bool(logging.getLogger(name).filter(record)) == told


def test_nothing_whole_left(tmp_path):
    filled(tmp_path, [1])
    files_of(tmp_path, 1)[0].unlink()
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match=r"no checkpoint in .* can be read: 1: "):
            checkpointer.restore(placed(make_state()))
        assert checkpointer.steps() == [1]
        with pytest.raises(InputError, match="unknown checkpoint step 5"):
            checkpointer.restore(placed(make_state()), step=5)


def test_another_model_is_refused_by_name(tmp_path):
    filled(tmp_path, [1, 2])
    other = make_state(classes=20)
    del other["batch_stats"]
    other["params"]["extra"] = {f"w{i}": jnp.zeros(2) for i in range(9)}
    other["step"] = jnp.float32(7)
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError) as refused:
            checkpointer.restore(placed(other))
        assert checkpointer.steps() == [1, 2]
    message = str(refused.value)
    assert "checkpoint 2 in" in message
    assert "9 missing: params.extra.w0; params.extra.w1; " in message
    assert "params.extra.w8" not in message
    assert "1 unexpected: batch_stats.norm.mean" in message
    assert "params.head.kernel float32[8, 10] in the file, float32[8, 20] here" in message
    assert "step int32[] in the file, float32[] here" in message


def test_the_last_and_the_best_are_kept(tmp_path):
    state = {"params": {"w": jnp.ones(3)}}
    accuracy = {1: float("nan"), 2: 0.9, 3: 0.5, 4: 0.3, 5: 0.2}
    with Checkpointer(tmp_path, keep_last=2, keep_best="accuracy") as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state, {"accuracy": accuracy[step]})
    with Checkpointer(tmp_path, keep_last=2, keep_best="accuracy") as checkpointer:  # a resumed run
        assert checkpointer.best_step() == 2
        assert not checkpointer.save(3, state)
        for step in (4, 5):
            checkpointer.save(step, state, {"accuracy": accuracy[step]})
        checkpointer.save(6, state)
        checkpointer.wait()
        assert checkpointer.steps() == [2, 5, 6]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5", "6"]
        assert checkpointer.best_step() == 2
    with Checkpointer(tmp_path, keep_best="accuracy", mode="min") as checkpointer:
        assert checkpointer.best_step() == 5
        with pytest.raises(InputError, match=r"unknown keep_best metric 'accuracy': did you mean 'acuracy'"):
            checkpointer.save(7, state, {"acuracy": 1.0})
        assert checkpointer.steps() == [2, 5, 6]
    with pytest.raises(InputError, match="unknown mode 'maxx': did you mean 'max'"):
        Checkpointer(tmp_path, mode="maxx")


def test_read_some_collections(tmp_path):
    state = make_state()
    filled(tmp_path, [1, 2])
    arrays = read(tmp_path, ("params", "batch_stats"), step=1)
    expected = {n: x for n, x in to_named(make_state(1)).items() if n.startswith(("params.", "batch_stats."))}
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray)
        assert array.dtype == expected[name].dtype
        assert array.tobytes() == np.asarray(expected[name]).tobytes()
    files_of(tmp_path, 2)[0].unlink()
    assert int(read(tmp_path, ("data_position",))["data_position"]) == state["data_position"] + 1
    assert (tmp_path / "2").exists(), "reading leaves the damaged one where it is"
    with pytest.raises(InputError, match="unknown collections 'data': "):
        read(tmp_path, ("data",), step=1)
    with pytest.raises(InputError, match="no checkpoint in"):
        read(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


SHARDED = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
sys.path.insert(0, "tests/train")
from test_checkpoint import assert_same, make_state, placed
from vision_jax.train.checkpoint import Checkpointer

def fsdp(n):
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((n,), ("fsdp",), axis_types=axis_types, devices=jax.devices()[:n])
    def sharding(x):  # the last axis where it divides; never the axis of the stacked blocks, which has length 3
        divides = x.ndim and x.shape[-1] % n == 0
        return NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), "fsdp") if divides else PartitionSpec())
    return sharding

assert jax.device_count() == 8
state = make_state()
def put(x, like):
    return jax.device_put(x, like.sharding) if hasattr(x, "dtype") else x
on_8 = jax.tree.map(put, state, placed(state, fsdp(8)))
assert len(on_8["params"]["blocks"]["stacked"]["mlp"]["kernel"].sharding.device_set) == 8
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, on_8)
    for n in (1, 4, 8):
        for stacked in (True, False):
            abstract = placed(make_state(stacked=stacked), fsdp(n))
            restored, _ = checkpointer.restore(abstract)
            assert_same(restored, make_state(stacked=stacked))
            for x, like in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract)):
                assert not hasattr(x, "sharding") or x.sharding == like.sharding, (x.sharding, like.sharding)
print("same")
"""


def test_sharded_over_8_devices_restores_onto_1_and_4(tmp_path):
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "same"


KILLED = """
import sys, jax, jax.numpy as jnp
from vision_jax.train.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1], keep_last=1)
x = jax.random.normal(jax.random.key(0), (8, 1_000_000))
for step in range(1, 100):
    checkpointer.save(step, {"params": {"x": x + step}})
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.03, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.0, 0.06, 0.1))])
def test_killed_during_a_save(tmp_path, delay):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, env=env, text=True)
    while int(run.stdout.readline()) < 3:
        pass
    time.sleep(delay)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    with Checkpointer(tmp_path, keep_last=1) as checkpointer:
        state, step = checkpointer.restore(placed({"params": {"x": jnp.zeros((8, 1_000_000))}}))
        assert step >= 2
        expected = jax.random.normal(jax.random.key(0), (8, 1_000_000)) + step
        np.testing.assert_array_equal(state["params"]["x"], expected)
        checkpointer.save(step + 1, state)
    assert [p.name for p in tmp_path.iterdir()] == [str(step + 1)], "leftovers of the killed save are gone"


def test_a_mesh_that_shards_the_stacked_axis_still_restores(tmp_path):
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    state = {"blocks": {"stacked": {"w": jax.device_put(jnp.arange(6.0).reshape(3, 2), sharding)}}}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        restored, _ = checkpointer.restore(state)
    assert_same(restored, state)
    assert restored["blocks"]["stacked"]["w"].sharding == sharding
