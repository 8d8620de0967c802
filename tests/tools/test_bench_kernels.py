"""The kernels' benchmarks at small sizes on a CPU: what they compare is the same, and what they write can be read."""

import argparse
import json

import jax
import numpy as np
import pytest
from vision_jax.kernels import dispatch, explain

import tpu
from vision_jax.parallel.chips import Chip
from vision_jax.tools.bench import __main__ as bench
from vision_jax.tools.bench import kernels, traffic
from vision_jax.tools.bench.kernels import Case

TINY = {
    "windows": Case("window", 2, (8, 8), 2, 16, {"window_size": 4, "shift": 2}, bias=True),
    "one window": Case("window", 1, (4, 4), 2, 16, {"window_size": 4, "shift": 0}),
    "neighborhood": Case("neighborhood", 1, (6, 6), 2, 16, {"kernel_size": 3}),
    "linear": Case("linear", 1, (12,), 2, 16, {"normalizer": True}),
}


def test_cases_are_calls_that_the_operators_take():
    """All cases, traced; each by the device's kernel where there is one, even if only by its name."""
    models = {"swin_t", "swin_b", "nat_b", "map", "l2vit_b", "ravlt_b", "vir_b", "normalised"}
    assert {name.split()[0] for name in kernels.CASES} == models
    assert {kernels.chosen_implementation(case) for case in kernels.CASES.values()} == {"xla"}
    with jax.set_mesh(tpu.mesh("v5e")):
        for name in ("swin_t 1 at 224", "ravlt_b 2 of 4096 tokens", "vir_b of 4096 tokens"):
            assert kernels.chosen_implementation(kernels.CASES[name]) == "tpu"


def test_a_kernel_that_runs_by_name_only_is_measured(monkeypatch):
    monkeypatch.setattr(dispatch, "device", lambda: ("gpu", "NVIDIA H200"))
    assert kernels.chosen_implementation(kernels.CASES["swin_t 1 at 224"]) == "gpu"
    assert kernels.chosen_implementation(kernels.CASES["nat_b 1 at 224, kernel 7"]) == "gpu"
    assert kernels.chosen_implementation(kernels.CASES["map of 256, kernel 31"]) == "gpu"
    assert kernels.chosen_implementation(kernels.CASES["normalised linear, 4096 tokens"]) == "gpu"
    assert kernels.chosen_implementation(kernels.CASES["vir_b of 65536 tokens"]) == "gpu"


def test_floors_count_what_a_call_must_do():
    case, chip = Case("window", 2, (8, 8), 3, 16, {"window_size": 4, "shift": 0}), Chip(1.0, 1.0, 1.0)
    floors = kernels.floors(case, "forward", chip)
    assert floors == {"flops": 2 * (2 * 128 * 3 * 16 * 16), "bandwidth": 4 * 128 * 3 * 16 * 2}
    linear = kernels.floors(Case("linear", 2, (64,), 3, 16, {}), "forward", chip)
    assert linear == floors  # a state of 16 rows costs what 16 keys do
    both = kernels.floors(case, "train", chip)
    assert both["flops"] / floors["flops"] == 7 / 2
    assert both["bandwidth"] / floors["bandwidth"] == 11 / 4


@pytest.mark.heavy
def test_measures_and_writes(tmp_path, monkeypatch):
    cases = TINY | {"linear": Case("linear", 1, (6,), 2, 16, {"causal": True, "log_decay": np.zeros(2)})}
    monkeypatch.setattr(kernels, "CASES", cases)
    files = [str(tmp_path / "out.json"), str(tmp_path / "out.md")]
    assert bench.main(["kernels", "--repeats", "1", "--calls", "2", "--json", files[0], "--markdown", files[1]]) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(row["case"], row["kind"]) for row in results] == [(n, k) for n in cases for k in ("forward", "train")]
    assert all(seconds[0] > 0 for row in results for seconds in row["seconds"].values())
    text = (tmp_path / "out.md").read_text()
    assert text.count("| windows | xla |") == 2
    assert "- device: `" in text


def test_what_is_unknown_is_told(capsys):
    assert bench.main(["kernels", "swin_x*"]) == 2
    assert "swin_x*" in capsys.readouterr().err
    assert bench.main(["kernels", "--calls", "0"]) == 2
    assert "--calls=0" in capsys.readouterr().err
    assert bench.main(["traffic", "v6e:2x4", "--blocks", "Swin-X"]) == 2
    assert "Swin-X" in capsys.readouterr().err


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in TINY if name != "linear"])
def test_peers_compute_the_same(name, monkeypatch):
    monkeypatch.setattr(kernels, "CASES", TINY)
    args = argparse.Namespace(cases=[name], repeats=1, calls=1, natten_backend=None)
    results = kernels.measure(args, threads=1)
    assert results[0]["difference"]
    assert all(difference < 0.01 for difference in results[0]["difference"].values())


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("RAVLT-B stage 2, 256 x 256 map", "tpu"),
        ("L2ViT-B stage 1, 64 x 64 map", "xla"),
        ("ViR-B, 4,096 tokens", "tpu"),
    ],
)
def test_blocks_of_linear_attention_take_the_kernel(name, default):
    """Where it is named; by themselves where it moves less. They have a gradient for the map and each projection."""
    (block,) = (b for b in traffic.BLOCKS if b.name == name)
    with jax.set_mesh(tpu.mesh("v6e")):
        for implementation, expected in (("tpu", "tpu"), (None, default)):
            f, shapes = traffic.step(block, implementation)
            assert [choice.implementation for choice in explain(f, *shapes)] == [expected]
        loss, gradients = jax.eval_shape(f, *shapes)
    assert loss.shape == ()
    assert [g.shape for g in gradients] == [s.shape for s in shapes]
    assert shapes[0].shape == (block.batch, *block.size, block.heads * block.head_dim)


@pytest.mark.heavy
def test_a_kernel_moves_what_it_reads_and_writes(monkeypatch):
    """Of a block of windows, less than XLA's path, and no less than its operands once each."""
    block = traffic._windows("tiny", 4, 16, 4, 8, 4)
    monkeypatch.setattr(traffic, "BLOCKS", (block,))
    told = []
    args = argparse.Namespace(topology="v5e:4x4", blocks=["ti*"])
    (result,) = traffic.measure(args, threads=1, tell=told.append)
    _, shapes = traffic.step(block, "xla")
    operands = sum(s.size * s.dtype.itemsize for s in shapes)
    assert 2 * operands < result["tpu"]["moved"] < result["xla"]["moved"]
    assert told == [traffic.tables([result])[-1]]
    assert told[0].startswith(f"| tiny | 4 | {result['xla']['moved'] / 1e6:,.0f} | {result['tpu']['moved'] / 1e6:,.0f}")
    assert 0 < result["xla"]["hbm"] < result["xla"]["moved"]
