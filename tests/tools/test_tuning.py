"""Tuning with a clock of the test's own: which tiles are tried, what counts as faster, what row is printed.

The kernels run in Pallas's interpreter, at small sizes; no test measures a time.
"""

import argparse

import jax.numpy as jnp
import pytest
from vision_jax.kernels import dispatch, tile_table
from vision_jax.kernels.linear_attention import token_tiles

from vision_jax.errors import InputError
from vision_jax.tools.bench import __main__ as bench
from vision_jax.tools.bench import kernels, tuning
from vision_jax.tools.bench.kernels import Case

V6E = ("tpu", "TPU v6 lite")
WINDOWS = {"small": Case("window", 2, (8, 8), 2, 16, {"window_size": 4, "shift": 2}, bias=True)}
WINDOWS["large"] = WINDOWS["small"]._replace(size=(8, 16), options={"window_size": 4})


def clock(seconds):
    """In place of `timing.interleaved`: a call of a tile takes as long as `seconds` says."""
    return lambda turns, rounds: {tile: [seconds(tile)] * rounds for tile in turns}


@pytest.fixture
def built(monkeypatch):
    """Nothing is run: (kernel, tile, case) of all that would have been."""
    log = []

    def build(kernel, tile, case, arrays, platform):
        log.append((kernel, tile, case.size))
        return {kind: lambda: None for kind in kernels.KINDS} | {"wait": lambda _: None}

    monkeypatch.setattr(tuning, "_built", build)
    with dispatch.interpreted():
        yield log


def tune(cases, seconds, device=V6E):
    told = []
    return tuning.tune(cases, device, 2, 1, told.append, clock(seconds)), told


def test_a_row_is_the_fastest_tile_of_all_its_cases(built):
    """Both cases share a row: four windows at once are four times as fast for the first, not for both."""
    seconds = iter([{4: 0.25, 8: 1.0}] * 2 + [{4: 1.0, 8: 1.0}] * 2)
    told = []

    def timed(turns, rounds):
        now = next(seconds)
        return {tile: [now.get(tile, 2.0)] * rounds for tile in turns}

    (result,) = tuning.tune(WINDOWS, V6E, 2, 1, told.append, timed)
    assert (result["kernel"], result["call"], result["cases"]) == ("window_attention.tpu", ((4, 4), 16), [*WINDOWS])
    assert result["used"] == 8
    assert {tile: round(gain, 6) for tile, gain in result["gains"].items()} == {1: 0.5, 2: 0.5, 4: 2, 16: 0.5, 32: 0.5}
    assert "window_attention.tpu ((4, 4), 16), 4: 2.00 times as fast as 8" in told
    assert sorted(built) == sorted(
        ("window_attention.tpu", n, s) for n in (1, 2, 4, 8, 16, 32) for s in ((8, 8), (8, 16))
    )


def test_the_row_goes_into_the_table(built, monkeypatch):
    (result,), _ = tune(WINDOWS, lambda tile: 1 / tile)
    row = eval("{" + result["row"] + "\n}")
    assert row == {("TPU v6 lite", "window_attention.tpu", ((4, 4), 16)): 32}
    monkeypatch.setattr(tile_table, "TABLE", row)
    monkeypatch.setattr(dispatch, "device", lambda: V6E)
    assert tile_table.choose("window_attention.tpu", ((4, 4), 16), 8, tuple) == 32
    assert tile_table.choose("window_attention.tpu", ((4, 4), 32), 8, tuple) == 8
    monkeypatch.setattr(dispatch, "device", lambda: ("tpu", "TPU v5"))
    assert tile_table.choose("window_attention.tpu", ((4, 4), 16), 8, tuple) == 8


def test_what_may_be_chance_gives_no_row(built):
    (result,), _ = tune(WINDOWS, lambda tile: 1.0 if tile == 8 else 0.98)
    assert result["row"] is None
    assert "```python" in tuning.tables([result])


def test_a_tile_that_cannot_run_for_one_case_is_left_out(built, monkeypatch):
    runs = tuning._built

    def refuse(kernel, tile, case, *rest):
        if (tile, case.size) == (32, (8, 16)):
            return "no room"
        return runs(kernel, tile, case, *rest)

    monkeypatch.setattr(tuning, "_built", refuse)
    (result,), told = tune(WINDOWS, lambda tile: 1 / tile)
    assert result["refused"] == {32: "no room"}
    assert 32 not in result["gains"]
    assert ": 16," in result["row"]
    assert told[-1].endswith("32: no room")
    monkeypatch.setattr(tuning, "_built", lambda *a: "nothing runs")
    with pytest.raises(InputError, match="does not run with its own tile 8: nothing runs"):
        tune(WINDOWS, lambda tile: 1)


def test_every_kernel_is_asked_for_its_tiles(built):
    """On a TPU and on a GPU; each kernel has a tile in use and others to try."""
    names = ("swin_t 1 at 224", "nat_b 2 at 224, kernel 7", "l2vit_b 1 of 4096 tokens", "vir_b of 4096 tokens")
    found = {}
    for platform in ("tpu", "gpu"):
        groups = tuning._groups({name: kernels.CASES[name] for name in names}, platform)
        for (kernel, call), (cases, used, candidates) in groups.items():
            assert {*candidates} - {used}
            found[kernel] = (call, *cases)
    assert found == {
        "window_attention.tpu": (((7, 7), 32), "swin_t 1 at 224"),
        "window_attention.gpu": (((7, 7), 32), "swin_t 1 at 224"),
        "neighborhood_attention.tpu": (((1, 28, 28), (1, 7, 7), 32), "nat_b 2 at 224, kernel 7"),
        "linear_attention.tpu": ((4096, 32), "l2vit_b 1 of 4096 tokens"),
        "causal_linear_attention.tpu": ((64,), "vir_b of 4096 tokens"),
    }


@pytest.mark.heavy
def test_candidates_are_run(monkeypatch):
    """The kernel itself, with each tile, forward and backward; one does not compile."""
    case = Case("linear", 1, (48,), 2, 16, {"normalizer": True})
    monkeypatch.setattr(token_tiles, "CANDIDATES", (16, 32))
    ours = kernels.ours

    def failing(case, arrays, platform):
        with tile_table.asked() as asked:
            kernels.chosen_implementation(case, platform)
        if asked[0].tile == 32:
            raise ValueError("too large")
        return ours(case, arrays, platform)

    monkeypatch.setattr(kernels, "ours", failing)
    with dispatch.interpreted():
        (result,), _ = tune({"tiny": case}, lambda tile: tile)
    assert result["gains"] == {16: pytest.approx(3)}
    assert result["refused"] == {32: "not compiled: too large"}


def test_a_tile_that_leaves_no_room_for_float32_is_no_candidate(monkeypatch):
    case, chosen = Case("linear", 1, (48,), 2, 16, {}), kernels.chosen_implementation

    def narrow(case, kernel, dtype=jnp.bfloat16):
        with tile_table.asked() as asked:
            found = chosen(case, kernel, dtype)
        return "xla" if dtype == jnp.float32 and asked[0].tile == 16 else found

    monkeypatch.setattr(kernels, "chosen_implementation", narrow)
    with dispatch.interpreted():
        built = tuning._built("linear_attention.tpu", 16, case, kernels.operands(case), "tpu")
    assert built == "not taken in float32"


def test_without_an_accelerator_it_says_so(capsys):
    assert bench.main(["kernels", "--tune"]) == 2
    assert "on a TPU or a GPU, and this is a cpu" in capsys.readouterr().err
    args = argparse.Namespace(cases=["swin_x"], repeats=1, calls=1)
    with pytest.raises(InputError, match="swin_x"):
        tuning.measure(args, threads=1)
