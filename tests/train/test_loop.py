"""A run from its first step to its last: stopped, broken, gone wrong, resumed, and what it leaves."""

import logging
import os
import signal
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import tiny_run
from tiny_run import assert_same, config, records, state_of
from vision_jax import functional
from vision_jax.errors import DivergedError
from vision_jax.tasks.classification import Classification
from vision_jax.train import evaluate, loop, run, use
from vision_jax.train.config import read_config

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """No pictures; runs that compute alike share what they have compiled."""
    compiled = {}

    def shared(make):
        def once(self):
            c = self.config
            parts = (c.seed, c.total, c.dtype, c.ema, c.model, c.task, c.optim, c.mesh, c.data.ops, c.data.batch_size)
            key = make.__name__, c.eval.batch_size, *map(str, parts)
            if key not in compiled:
                compiled[key] = make(self)
            return compiled[key]

        return once

    def initial_state(self):  # its arrays are donated to the first step
        return jax.tree.map(jax.numpy.copy, drawn(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "report", lambda *_: {})
        drawn = shared(run.Run.initial_state)
        patch.setattr(run.Run, "initial_state", initial_state)
        patch.setattr(run.Run, "train_step", shared(run.Run.train_step))
        patch.setattr(run.Run, "eval_step", shared(run.Run.eval_step))
        yield


@pytest.fixture(scope="module")
def undisturbed(cheap, tmp_path_factory):
    """A run of 12 steps with mixup and an average, left alone."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    loop.train(config(), workdir)
    return workdir


def assert_same_run(workdir, undisturbed):
    assert_same(state_of(workdir), state_of(undisturbed))
    for kind in ("train/loss", "eval/loss"):
        got, expected = ([(r["step"], r[kind]) for r in records(w, kind)] for w in (workdir, undisturbed))
        assert got == expected


def kill(*signals):
    for number in signals:
        signal.raise_signal(number)  # os.kill may wake another thread, and the main one hears of it when it likes


def at_step(monkeypatch, step, do):
    """Does something once, after a step."""
    before = loop.MetricLog.advance

    def advance(self, now):
        before(self, now)
        if now == step:
            monkeypatch.setattr(loop.MetricLog, "advance", before)
            do()

    monkeypatch.setattr(loop.MetricLog, "advance", advance)


def before_call(monkeypatch, name, number, do):
    """Does something once, before the n-th call of what the loop calls `name`."""
    function, calls = getattr(loop, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            do()
        return function(*args, **kwargs)

    monkeypatch.setattr(loop, name, wrapped)


# --- Stopped and resumed.


@pytest.mark.parametrize(
    ("moment", "step"),
    [("while it is being set up", 0), ("in training", 5), ("in evaluation", 6), ("in the last step", 12)],
)
def test_told_to_stop(tmp_path, undisturbed, monkeypatch, caplog, moment, step):
    caplog.set_level(logging.INFO)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    if moment == "while it is being set up":
        before_call(monkeypatch, "build", 1, lambda: kill(signal.SIGTERM))
    elif moment == "in evaluation":
        before_call(monkeypatch, "evaluate", 1, lambda: kill(signal.SIGTERM))
    else:
        at_step(monkeypatch, step, lambda: kill(signal.SIGINT))
    metrics = loop.train(config(), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert int(state_of(tmp_path, "step")["step"]) == step
    if step < 12:
        assert metrics is None
        assert f"asked to stop: saved step {step} of 12 in {tmp_path / 'checkpoints'}" in caplog.text
        assert all(record["step"] <= step for record in records(tmp_path))
        metrics = loop.train(config(), tmp_path)
        assert f"resuming from step {step}" in caplog.text
    assert metrics["loss"] == records(undisturbed, "eval/loss")[-1]["eval/loss"]
    if moment == "in evaluation":  # given up there, and not done again
        assert [record["step"] for record in records(tmp_path, "eval/loss")] == [12]
        assert_same(state_of(tmp_path), state_of(undisturbed))
    else:
        assert_same_run(tmp_path, undisturbed)


def test_a_second_interrupt_ends_it_at_once(tmp_path, monkeypatch):
    at_step(monkeypatch, 6, lambda: kill(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        loop.train(config(), tmp_path)
    assert int(state_of(tmp_path, "step")["step"]) == 4


@pytest.mark.parametrize("step", [1, 4, 7])
def test_broken_off_and_resumed(tmp_path, undisturbed, monkeypatch, step):
    at_step(monkeypatch, step, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.train(config(), tmp_path)
    loop.train(config(), tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_finished_run_is_left_as_it_is(undisturbed, caplog):
    caplog.set_level(logging.INFO)
    before, state = records(undisturbed), state_of(undisturbed)
    metrics = loop.train(config(), undisturbed)
    assert "already trained for 12 steps" in caplog.text
    assert records(undisturbed) == before
    assert {f"eval/{name}": value for name, value in metrics.items()}.items() <= before[-1].items()
    assert_same(state_of(undisturbed), state)


def test_another_config_is_told_and_kept(tmp_path, monkeypatch, caplog):
    at_step(monkeypatch, 5, lambda: kill(signal.SIGTERM))
    loop.train(config(), tmp_path)
    assert "the config differs" not in caplog.text
    loop.train(config(optim__lr=0.01, eval__batch_size=40), tmp_path)
    told = [record.getMessage() for record in caplog.records if "the config differs" in record.getMessage()]
    assert [line.partition("here: ")[2] for line in told] == ["eval.batch_size: 120 -> 40", "optim.lr: 0.001 -> 0.01"]
    assert read_config(tmp_path / "config.json").optim.lr == 0.01


def test_the_config_that_is_kept_builds_the_model_without_data(undisturbed):
    kept = run.build(read_config(undisturbed / "config.json"))
    built = run.build(config(), evaluation=True)
    assert kept.static.shapes == built.static.shapes
    assert kept.task == built.task


# --- Gone wrong.


def diverged(workdir, **fields):
    with pytest.raises(DivergedError) as caught:
        loop.train(config(checkpoint__every=1, eval__every=1, **fields), workdir)
    return str(caught.value)


def test_parameters_that_overflow(tmp_path):
    """The step that breaks them, by their decay, has a finite loss itself; the first one has a rate of zero."""
    message = diverged(tmp_path, optim__lr=3e38, optim__weight_decay=1e3)
    assert message.startswith("step 2: the loss is 2.")
    assert "6 of 18 parameters" in message
    assert "blocks.0.attn.proj.kernel, blocks.0.attn.qkv.kernel, " in message
    assert f"The last good checkpoint: step 1 in {tmp_path / 'checkpoints'}" in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1"]
    assert {record["step"] for record in records(tmp_path)} == {1}
    assert all(np.isfinite(value).all() for value in state_of(tmp_path).values())


def test_a_loss_that_is_no_number(tmp_path, monkeypatch):
    """Told by the names of the parameters; neither saved nor judged."""
    make = run.Run.train_step

    def poisoned(self):
        step = make(self)

        def call(state, batch, frozen):
            if int(state["step"]) == 4:
                bias = state["params"]["head"]["bias"]
                state["params"]["head"]["bias"] = jax.device_put(np.full(bias.shape, np.nan, bias.dtype), bias.sharding)
            return step(state, batch, frozen)

        return call

    monkeypatch.setattr(run.Run, "train_step", poisoned)
    message = diverged(tmp_path)
    assert message.startswith("step 5: the loss is nan")
    assert "step 4 in" in message
    assert "config.optim.clip" in message
    assert int(state_of(tmp_path, "step")["step"]) == 4
    assert all(None not in record.values() for record in records(tmp_path))


def test_gone_wrong_before_anything_was_saved(tmp_path):
    with pytest.raises(DivergedError, match="none, the run had saved nothing yet"):
        loop.train(config(optim__lr=3e38, optim__weight_decay=1e3), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


# --- What is kept, and what is told.


@pytest.mark.parametrize(
    ("metric", "fields", "kept"),
    [
        ("accuracy", {"eval.every": 2, "checkpoint.every": 100}, {4, 12}),
        ("loss", {"eval.every": 2, "checkpoint.every": 100}, {8, 12}),
        ("accuracy", {"eval.every": 4, "checkpoint.every": 1}, {8, 12}),
        ("", {"eval.every": 2, "checkpoint.every": 5}, {12}),
    ],
)
def test_the_best_is_kept(tmp_path, monkeypatch, metric, fields, kept):
    values = iter([0.1, 0.9, 0.3, 0.05, 0.8, 0.4] if fields["eval.every"] == 2 else [0.1, 0.9, 0.3])
    monkeypatch.setattr(Classification, "metrics", lambda *_: dict.fromkeys(("accuracy", "loss"), next(values)))
    fields |= {"checkpoint.keep_last": 1, "checkpoint.keep_best": metric}
    loop.train(config(fields={**tiny_run.VIT, **fields}), tmp_path)
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == kept


def test_records(undisturbed):
    told = records(undisturbed, "train/loss")
    assert [record["step"] for record in told] == list(range(1, 13))
    assert told[0]["train/learning_rate"] == 0
    assert told[2]["train/learning_rate"] == pytest.approx(1e-3)
    assert all(record["images_per_second"] == 8 * record["images_per_second_per_device"] > 0 for record in told)
    assert [record["step"] for record in records(undisturbed, "eval/accuracy_top5")] == [6, 12]


def test_records_every_few_steps(tmp_path, undisturbed):
    loop.train(config(log_every=5), tmp_path)
    told = [(record["step"], record["train/loss"]) for record in records(tmp_path, "train/loss")]
    every = {record["step"]: record["train/loss"] for record in records(undisturbed, "train/loss")}
    assert told == [(step, every[step]) for step in (5, 10, 12)]


def test_tensorboard(tmp_path, monkeypatch):
    picture = np.zeros((4, 5, 3), np.uint8)
    monkeypatch.setattr(loop, "report", lambda *_: {"confusion": picture})
    loop.train(config(), tmp_path)
    tags = {value.tag: value for event in events(tmp_path) for value in event.summary.value}
    assert {"train/loss", "train/learning_rate", "images_per_second", "eval/accuracy"} <= set(tags)
    assert (tags["confusion"].image.height, tags["confusion"].image.width) == (4, 5)


def events(workdir):
    """The events of all TensorBoard files: each lies between a length, its checksum and a checksum of its own."""
    for path in sorted(workdir.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_the_profiler(root, tmp_path):
    """Two steps, and, in the run that goes on from there, what its end cuts short.

    In a process of its own: a profile takes in every program and thread of its process, here those of other tests.
    """
    command = [sys.executable, "-m", "vision_jax.main", *tiny_run.arguments(tmp_path)]
    for steps, total, profiles in (("3,4", 8, 1), ("11,400", 12, 2)):
        subprocess.run([*command, f"--config.profile_steps={steps}", f"--config.total={total}"], cwd=root, check=True)
        assert [path.stat().st_size > 0 for path in tmp_path.rglob("*.xplane.pb")] == [True] * profiles


# --- Evaluation.


def test_evaluation_counts_every_image_once(undisturbed):
    """360 images in batches of 104: the last one is filled up."""
    r = run.build(config(eval__batch_size=104), evaluation=True)
    with jax.set_mesh(r.mesh):
        variables, step = use._restored(r, undisturbed)
        sums = evaluate.evaluate(r, r.eval_step(), variables)
    examples = [r.eval_source[i] for i in range(360)]
    images = (np.stack([example["image"] for example in examples]) / 255 - 0.3) / 0.38
    logits = np.asarray(functional.apply(r.static, jax.device_get(variables), images.astype(np.float32))[0])
    labels = np.array([example["label"] for example in examples])
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.zeros((10, 10))
    np.add.at(expected, (labels, logits.argmax(-1)), 1)
    assert step == 12
    assert sums["count"] == 360
    assert np.array_equal(sums["confusion"], expected)
    metrics = r.task.metrics(sums)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean(), abs=1e-7)
    top5 = (logits.argsort(-1)[:, -5:] == labels[:, None]).any(-1).mean()
    assert metrics["accuracy_top5"] == pytest.approx(top5, abs=1e-7)
    assert metrics["loss"] == pytest.approx(-log_probabilities[np.arange(360), labels].mean(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(records(undisturbed, "eval/loss")[-1]["eval/loss"], rel=1e-6)


def test_the_average_is_evaluated(undisturbed):
    r = run.build(config(), evaluation=True)
    variables, _ = use._restored(r, undisturbed)
    average = state_of(undisturbed, "ema")
    assert np.array_equal(variables["params"]["head"]["kernel"], average["ema.params.head.kernel"])
    assert not np.array_equal(variables["params"]["head"]["kernel"], state_of(undisturbed)["params.head.kernel"])


# --- Ways to train.


def test_frozen_by_name(tmp_path):
    loop.train(config(optim__freeze="('patch_embed', r'blocks\\.0\\.attn\\.')", ema=0.0), tmp_path)
    r = run.build(config(ema=0.0), training=True, evaluation=True)
    with jax.set_mesh(r.mesh):
        first = tiny_run.by_name(r.initial_state()["params"])
    for name, value in state_of(tmp_path, "params").items():
        name = name.removeprefix("params.")
        frozen = name.startswith(("patch_embed.", "blocks.0.attn."))
        assert np.array_equal(value, first[name]) == frozen, name


def test_bfloat16(tmp_path, undisturbed):
    loop.train(config(dtype="bfloat16"), tmp_path)
    assert {value.dtype for name, value in state_of(tmp_path, "params", "ema").items()} == {np.dtype(np.float32)}
    got, expected = (np.array([r["train/loss"] for r in records(w, "train/loss")]) for w in (tmp_path, undisturbed))
    assert not np.array_equal(got, expected)
    np.testing.assert_allclose(got, expected, rtol=1e-2)


@pytest.mark.slow
def test_sharded_as_on_one_device(root, tmp_path):
    """The command on 8 simulated devices, parameters split over 4, and on one; then begun on 8 and ended on one."""
    eight = {"mesh.data": 2, "mesh.fsdp": 4}
    fields = {**tiny_run.VIT, "total": 24, "checkpoint.every": 10, "checkpoint.keep_last": 3, "eval.every": 24}

    def train(workdir, devices, more=()):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(root)}
        argv = tiny_run.arguments(workdir, fields={**fields, **dict(more)})
        subprocess.run([sys.executable, "-m", "vision_jax.main", *argv], cwd=tmp_path, env=env, check=True)
        return np.array([record["train/loss"] for record in records(workdir, "train/loss")])

    one, many = train(tmp_path / "one", 1), train(tmp_path / "many", 8, eight)
    assert len(one) == 24
    np.testing.assert_allclose(many, one, atol=1e-5, rtol=0)
    for step in ("20", "24"):
        (tmp_path / "many" / "checkpoints" / step).rename(tmp_path / f"{step} of many")
    resumed = train(tmp_path / "many", 1)
    assert np.array_equal(resumed[:10], many[:10])
    np.testing.assert_allclose(resumed, one, atol=1e-5, rtol=0)
