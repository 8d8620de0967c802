"""The benchmark command: turns, arithmetic, tables and errors. No test asserts a time."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax as vj
from vision_jax.parallel import chips
from vision_jax.tools.bench import __main__ as bench
from vision_jax.tools.bench import machine, model_tables, models, ours, peers, timing

RESULT = {
    "model": "resnet18",
    "family": "resnet",
    "clock": "wall",
    "kind": "forward",
    "batch": 8,
    "ours": {"seconds": timing.Spread(0.1, 0.09, 0.12), "compile_seconds": 1.25, "memory_bytes": 3 * 2**20},
    "peers": {"timm": {"seconds": timing.Spread(0.2, 0.19, 0.3), "ratio": timing.Spread(2.0, 1.5, 2.5)}},
}


@pytest.fixture
def clock():
    """A clock that only the calls move on."""
    return types.SimpleNamespace(now=0.0)


def test_calls_take_turns_and_the_first_of_a_turn_is_not_timed(clock):
    log = []

    def call(name, *durations):
        durations = iter(durations)

        def run():
            log.append(name)
            clock.now += next(durations)

        return run

    calls = {"ours": call("A", 9, 1, 9, 2), "timm": call("B", 9, 4, 9, 8)}
    seconds = timing.interleaved(calls, 2, clock=lambda: clock.now)
    assert "".join(log) == "AABBAABB"
    assert seconds == {"ours": [1, 2], "timm": [4, 8]}


def test_median_and_quartiles():
    assert timing.spread([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert timing.spread([1, 2]) == (1.5, 1.25, 1.75)
    assert timing.spread([7]) == (7, 7, 7)


def test_a_ratio_compares_times_of_the_same_round():
    """The second round was slow for both: the ratio does not see it, that of any mix of rounds would."""
    assert timing.speedup([1, 10, 1], [2, 20, 2]) == (2, 2, 2)
    assert timing.speedup([1, 2], [0.5, 2]).median == 0.75


def test_roofline():
    assert chips.chip_of("TPU v5 lite").flops == 197e12
    assert chips.chip_of("TPU v5p") == chips.CHIPS["TPU v5"]
    assert chips.chip_of("NVIDIA H100 80GB HBM3").bandwidth == 3350e9
    assert chips.chip_of("cpu") is None
    chip = chips.Chip(flops=100, bandwidth=10, memory=1)
    assert chips.roofline_fraction(chip, seconds=4, flops=200, bytes_moved=1) == 0.5
    assert chips.roofline_fraction(chip, seconds=4, flops=1, bytes_moved=30) == 0.75


def test_markdown():
    other = {**RESULT, "model": "cvt_13", "peers": {}}
    slower = {**RESULT, "peers": {"timm": {**RESULT["peers"]["timm"], "ratio": timing.Spread(0.5, 0.5, 0.5)}}}
    text = "\n".join(model_tables.tables([RESULT, other, slower]))
    assert "| model | batch | images/s | ms | timm, ms | ratio | compile, s | memory, MiB |" in text
    row = "| resnet18 | 8 | 80.0 | 100.0 (90.0 to 120.0) | 200.0 (190.0 to 300.0) | **2.00** (1.50 to 2.50) | 1.2 | 3 |"
    assert row in text
    assert "| cvt_13 | 8 | 80.0 | 100.0 (90.0 to 120.0) |  |  | 1.2 | 3 |" in text
    assert "Ratio to timm: median 1.25, from 0.50 to 2.00, over 2 rows." in text
    assert "Training" not in text
    assert "| images/CPU s | CPU ms | timm, CPU ms |" in "\n".join(model_tables.tables([{**RESULT, "clock": "cpu"}]))
    on_chip = {**RESULT, "kind": "train", "ours": {**RESULT["ours"], "roofline": 0.25}}
    assert "of the roof" in "\n".join(model_tables.tables([on_chip]))
    assert "| 25% |" in "\n".join(model_tables.tables([on_chip]))


class FakePeer:
    """A peer that knows one model and tells what it was asked."""

    asked = ()

    def __init__(self, threads):
        FakePeer.asked = [("threads", threads)]

    def model(self, name, img_size, dtype, compile):
        FakePeer.asked.append((name, img_size, dtype, compile))
        if name != "resnet18":
            return None
        return peers.Peer(lambda images: lambda: None, lambda images, labels: lambda: None)


class FakeOurs:
    """A model that costs nothing."""

    image_shape, num_classes = (4, 4, 3), 5

    def __init__(self, name, fields):
        self.forward = self.train = lambda *inputs: FakeProgram()


class FakeProgram:
    def __call__(self):
        pass

    def figures(self, seconds):
        return {"compile_seconds": 0.0, "memory_bytes": None}


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "timm", FakePeer)
    monkeypatch.setattr(models, "Ours", FakeOurs)


def test_the_command_writes_both_files(faked, tmp_path, capsys):
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    argv = ["resnet18", "cvt_1*", "--against", "timm", "--torch_compile", "--batch", "1", "2", "--train", *files]
    assert bench.main(argv) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["environment"]["command"].startswith("python -m vision_jax.tools.bench resnet18 'cvt_1*' --against timm")
    assert out["environment"]["jax"]
    rows = [(row["model"], row["kind"], row["batch"], [*row["peers"]]) for row in out["results"]]
    both = ["timm", "timm compiled"]
    assert rows == [
        (name, kind, batch, expected)
        for name, expected in (("resnet18", both), ("cvt_13", []))
        for batch in (1, 2)
        for kind in ("forward", "train")
    ]
    assert len(out["results"][0]["peers"]["timm"]["ratio"]) == 3
    text = (tmp_path / "out.md").read_text()
    assert f"- jax: `{jax.__version__}`" in text
    assert "| cvt_13 | 2 |" in text
    assert "**Training step**" in (tmp_path / "out.md").read_text()
    assert FakePeer.asked[1:3] == [("resnet18", None, "float32", False), ("resnet18", None, "float32", True)]
    assert "resnet18" in capsys.readouterr().out


def test_the_subcommand_may_be_left_out(faked, capsys):
    assert bench.main(["models", "resnet18", "--repeats", "1"]) == 0
    with_it = capsys.readouterr().out.split()[0]
    assert bench.main(["resnet18", "--repeats", "1"]) == 0
    assert capsys.readouterr().out.split()[0] == with_it == "resnet18"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet5O"], "did you mean 'resnet50'"),
        (["resnet18", "--batch", "4", "0"], "--batch=0: batches have at least 1 image"),
        (["resnet18", "--repeats", "0"], "--repeats=0"),
        (["resnet18", "--img_size", "0"], "--img_size=0"),
        (["resnet18", "--dtype", "float23"], "did you mean 'float32'"),
        (["resnet18", "--clock", "wal"], "did you mean 'wall'"),
        (["resnet18", "--against", "tim"], "did you mean 'timm'"),
        (["resnet18", "--torch_compile"], "--against timm"),
        (["resnet18", "--threads", "0"], "--threads=0: this process may use 1 to"),
        (["resnet18", "--threads", "100000"], "--threads=100000"),
    ],
)
def test_wrong_input_is_told(argv, message, capsys):
    assert bench.main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_missing_peer_is_told(monkeypatch, capsys):
    monkeypatch.setenv("VISION_JAX_PARITY_PREIMPORT", "no_such_module")
    assert bench.main(["resnet18", "--against", "timm"]) == 2
    error = capsys.readouterr().err
    assert "no_such_module" in error
    assert "[parity]" in error


def test_threads_are_cores(monkeypatch):
    bound = []
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda pid, cores: bound.append([*cores]), raising=False)
    assert machine.use_threads(None) == 3
    assert machine.use_threads(3) == 3
    assert bound == []
    assert machine.use_threads(2) == 2
    assert bound == [[3, 5]]


@pytest.mark.heavy
def test_our_programs_compute_what_they_say():
    fields = dict(img_size=32, embed_dims=(8, 16), depths=(1, 1), num_classes=5)
    mine = ours.Ours("resnet18", fields)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((2, *mine.image_shape)).astype(np.float32), np.array([1, 3])
    forward = mine.forward(images)
    expected = vj.jit(vj.create_model("resnet18", **fields))(jnp.asarray(images))
    np.testing.assert_allclose(forward.compiled(*forward.arguments), expected, rtol=1e-5, atol=1e-5)
    assert forward.flops == 2 * 2 * mine.macs > 0
    step = mine.train(images, labels)
    kernel, mean = (np.array(tree) for tree in _watched(step))
    for _ in range(3):
        step()
    new_kernel, new_mean = _watched(step)
    assert step.arguments[0][-1] == 3
    np.testing.assert_allclose(abs(new_kernel - kernel).max(), 3 * ours.LEARNING_RATE, rtol=0.1)  # AdamW's first steps
    assert abs(new_mean - mean).max() > 0
    figures = step.figures(1.0)
    assert figures["flops"] == 3 * forward.flops
    assert figures["memory_bytes"] > 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(mine.variables["params"]))


def _watched(step):
    params, others, *_ = step.arguments[0]
    return params["fc"]["kernel"], others["batch_stats"]["bn1"]["mean"]


@pytest.mark.parity
def test_beside_timm(reference, capsys):
    reference("timm")
    fields = ["--batch", "1", "--repeats", "1", "--train", "--img_size", "64"]
    assert bench.main(["vit_tiny_patch16_224", "resnet18", "cvt_13", "--against", "timm", *fields]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [("x timm" in line) for line in lines] == [True] * 4 + [False] * 2
