"""A run that is killed again and again ends where the undisturbed one does, bit for bit.

The run has all that could differ: two data workers, mixup, drop-path, an average, accumulation and batch statistics.
`VISION_JAX_KILLS=20 pytest -m slow -n 0 -s tests/test_kills.py` does the full count and tells of each kill.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from vision_jax.train import checkpoint

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("VISION_JAX_KILLS", "4"))
TOTAL = 120 + 30 * KILLS  # steps, so that some are left for each kill
COLLECTIONS = ("step", "data_position", "params", "batch_stats", "opt_state", "ema")
CONFIG = {
    "total": TOTAL,
    "model.depths": (1, 1),
    "model.embed_dims": (8, 16),
    "model.drop_path_rate": 0.2,
    "data.batch_size": 16,
    "data.workers": 2,
    "optim.accumulate": 2,
    "optim.schedule.warmup": 10,
    "ema": 0.9,
    "eval.every": 50,
    "checkpoint.every": 3,
    "log_every": 1,
}


def start(root, workdir, marker=""):
    """The run, or what is left of it, in a process of its own; its workers inherit the marker."""
    arguments = [f"--config.{key}={value}" for key, value in CONFIG.items()]
    command = [sys.executable, "-m", "vision_jax.main", "--config", "configs/digits_resnet.py:16", "--workdir", workdir]
    env = {**os.environ, "XLA_FLAGS": "", "VISION_JAX_RUN": marker, "PYTHONPATH": str(root)}
    with log_of(workdir).open("w") as log:
        return subprocess.Popen([*command, *arguments], cwd=root, env=env, stderr=log)


def log_of(workdir):
    """Where the newest process that worked there said what it said."""
    return workdir.with_name(workdir.name + ".log")


def finish(process, workdir):
    """What the process said, once it has ended by itself."""
    status = process.wait(600)
    said = log_of(workdir).read_text()
    assert status == 0, said
    return said


def marked(marker):
    """The processes, of any parent, that were started with a marker."""
    found = []
    for environ in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"VISION_JAX_RUN={marker}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def wait_for(condition, process=None, seconds=300, pause=0.02):
    """Returns once the condition holds; the process, where given, must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process is None or process.poll() is None, "the run ended"
        time.sleep(pause)


def saves_under_way(workdir, since):
    """Whether a save was begun and not ended, after a moment: the leftovers of a killed one are older."""
    begun = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        return any(path.stat().st_ctime > since for path in begun)
    return False


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir):
    return max((record["step"] for record in records(workdir)), default=0)


def final_state(workdir):
    return checkpoint.read(workdir / "checkpoints", COLLECTIONS)


def assert_same_run(workdir, undisturbed):
    got, expected = final_state(workdir), final_state(undisturbed)
    assert got.keys() == expected.keys()
    assert {name.partition(".")[0] for name in got} == set(COLLECTIONS)
    differing = [name for name in expected if not np.array_equal(got[name], expected[name])]
    assert not differing
    for kind in ("train/loss", "eval/accuracy"):
        got, expected = ([(r["step"], r[kind]) for r in records(w) if kind in r] for w in (workdir, undisturbed))
        assert got == expected  # each step once, in order, with the same value
    assert json.loads((workdir / "config.json").read_text()) == json.loads((undisturbed / "config.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(start(root, workdir), workdir)
    assert [record["step"] for record in records(workdir) if "train/loss" in record] == list(range(1, TOTAL + 1))
    return workdir


def test_killed_at_random_moments(root, tmp_path, undisturbed):
    rng = random.Random(int.from_bytes(os.urandom(4), "big") if "VISION_JAX_KILLS" in os.environ else 0)
    workdir, marker = tmp_path / "killed", uuid.uuid4().hex
    during_a_save = 0
    for number in range(KILLS):
        process = start(root, workdir, marker)
        began, before = time.time(), last_step(workdir)
        # a step that leaves some for the kills to come; or the start, before the first step
        target = before + rng.randint(1, max(1, (TOTAL - 20 - before) // (KILLS - number)))
        if number % 5 == 4:
            time.sleep(rng.uniform(1, 8))
        else:
            wait_for(lambda: last_step(workdir) > target, process)
            if number % 2:
                wait_for(lambda: saves_under_way(workdir, began), process, pause=0.001)
            else:
                time.sleep(rng.uniform(0, 0.2))
        workers = len(marked(marker)) - 1
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        saving = saves_under_way(workdir, began)
        during_a_save += saving
        wait_for(lambda: not marked(marker), seconds=30)
        moment = f"kill {number + 1}: {time.time() - began:.1f} s after its start, step {last_step(workdir)} recorded"
        print(f"{moment}, {workers} children{', while saving' if saving else ''}; none of them left")
    said = finish(start(root, workdir, marker), workdir)
    assert "resuming from step" in said
    assert during_a_save >= min(3, KILLS // 3)
    wait_for(lambda: not marked(marker), seconds=30)
    assert_same_run(workdir, undisturbed)
    print(f"{KILLS} kills, {during_a_save} while saving: every array equal to the undisturbed run's, bit for bit")


def test_told_to_stop(root, tmp_path, undisturbed):
    workdir, marker = tmp_path / "run", uuid.uuid4().hex
    for target, stop in ((0, signal.SIGTERM), (60, signal.SIGTERM), (61, signal.SIGINT)):
        process = start(root, workdir, marker)
        wait_for((workdir / "config.json").exists, process)
        wait_for(lambda: last_step(workdir) >= target, process)
        process.send_signal(stop)
        said = finish(process, workdir)
        assert "asked to stop: saved step" in said
        assert str(workdir / "checkpoints") in said
        wait_for(lambda: not marked(marker), seconds=30)
        step = int(checkpoint.read(workdir / "checkpoints", ("step",))["step"])
        assert f"saved step {step} of {TOTAL}" in said
        assert step >= target
    finish(start(root, workdir, marker), workdir)
    assert_same_run(workdir, undisturbed)
