import json

from vision_jax.parallel.chips import GIB
from vision_jax.tools import pods

FOUND = {
    "topology": "v5e:4x4", "mesh": {"data": 2, "fsdp": 8, "tensor": 1}, "batch_size": 1024, "fits": True,
    "total": 4 * GIB, "capacity": 16 * GIB, "unsharded": GIB / 4, "step_seconds": 0.25, "bound": "hbm", "mfu": 0.5,
    "roofline": {"compute": 0.125, "hbm": 0.25, "interconnect": 0.0625, "network": 0.0},
    "moved": {"all-gather": {"count": 9, "bytes": GIB}, "all-reduce": {"count": 1, "bytes": 2 * GIB}},
}  # fmt: skip


def written(directory, **found):
    directory.mkdir()
    (directory / "compile_only.json").write_text(json.dumps({**FOUND, **found}))
    return str(directory)


def test_a_row_for_each_run(tmp_path, capsys):
    workdirs = [written(tmp_path / "one"), written(tmp_path / "two", fits=False, roofline=None, total=None, moved={})]
    workdirs.append(written(tmp_path / "alone", moved={}))
    workdirs.append(written(tmp_path / "joined", roofline={**FOUND["roofline"], "network": 0.125}))
    assert pods.main(workdirs) == 0
    head, _, one, two, alone, joined = capsys.readouterr().out.splitlines()
    assert head.startswith("| run | topology | data x fsdp x tensor | batch |")
    assert one == (
        "| one | v5e:4x4 | 2 x 8 x 1 | 1024 | 4.00 of 16 | 1.6% | 125.0 | 250.0 | 62.5 | 250.0, hbm | 50.0% | "
        "all-reduce, 2.00 GiB |"
    )
    assert two == "| two | v5e:4x4 | 2 x 8 x 1 | 1024 | does not fit | 1.6% |  |  |  |  |  |  |"
    assert alone.endswith("| 50.0% | nothing, 0.00 GiB |")
    assert " | 62.5 + 125.0 between slices | " in joined
    assert {line.count("|") for line in (head, one, two, alone, joined)} == {13}


def test_what_is_not_there(tmp_path, capsys):
    assert pods.main([str(tmp_path)]) == 2
    assert f"--compile_only=TOPOLOGY --workdir={tmp_path}" in capsys.readouterr().err
