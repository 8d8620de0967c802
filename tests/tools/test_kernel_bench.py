"""The kernels' benchmark at small sizes on a CPU: what it compares is the same, and what it writes can be read."""

import json

import pytest

from vision_jax.tools import kernel_bench
from vision_jax.tools.kernel_bench import Case

TINY = {
    "windows": Case("window", 2, (8, 8), 2, 16, {"window_size": 4, "shift": 2}, bias=True),
    "one window": Case("window", 1, (4, 4), 2, 16, {"window_size": 4, "shift": 0}),
    "neighborhood": Case("neighborhood", 1, (6, 6), 2, 16, {"kernel_size": 3}),
}


@pytest.mark.fast
def test_cases_are_calls_that_the_operators_take():
    """All cases of the benchmark, traced."""
    assert {name.split()[0] for name in kernel_bench.CASES} == {"swin_t", "swin_b", "nat_b", "map"}
    for case in kernel_bench.CASES.values():
        assert kernel_bench._chosen(case) == "xla"


@pytest.mark.fast
def test_floors_count_what_a_call_must_do():
    case = Case("window", 2, (8, 8), 3, 16, {"window_size": 4, "shift": 0})
    floors = kernel_bench.floors(case, "forward", (1.0, 1.0))
    assert floors == {"flops": 2 * (2 * 128 * 3 * 16 * 16), "bandwidth": 4 * 128 * 3 * 16 * 2}
    both = kernel_bench.floors(case, "train", (1.0, 1.0))
    assert both["flops"] / floors["flops"] == 7 / 2
    assert both["bandwidth"] / floors["bandwidth"] == 11 / 4


def test_measures_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_bench, "CASES", TINY)
    files = [tmp_path / "out.json", tmp_path / "out.md"]
    kernel_bench.main(["--rounds", "1", "--repeats", "1", "--json", str(files[0]), "--markdown", str(files[1])])
    results = json.loads(files[0].read_text())["results"]
    assert [(row["case"], row["kind"]) for row in results] == [(n, k) for n in TINY for k in ("forward", "train")]
    assert all(seconds > 0 for row in results for seconds in row["seconds"].values())
    assert files[1].read_text().count("| windows | xla |") == 2


def test_an_unknown_case_is_an_error(capsys):
    with pytest.raises(SystemExit):
        kernel_bench.main(["--cases", "swin_x*"])
    assert "swin_x*" in capsys.readouterr().err


@pytest.mark.parity
@pytest.mark.parametrize("name", TINY)
def test_peers_compute_the_same(name):
    results = kernel_bench.measure({name: TINY[name]}, rounds=1, repeats=1)
    assert results[0]["difference"]
    assert all(difference < 0.01 for difference in results[0]["difference"].values())
