"""A table of what `--compile_only` found, a row for each run: `python -m vision_jax.tools.pods WORKDIR...`.

docs/pods.md holds such tables, and the commands that make them.
"""

import argparse
import json
import pathlib
import sys

from vision_jax.errors import InputError
from vision_jax.parallel.chips import GIB

HEAD = (
    "run", "topology", "data x fsdp x tensor", "batch", "GiB a device", "whole, % of memory", "compute, ms",
    "memory, ms", "links, ms", "step at least, ms", "MFU at most", "most received by a device",
)  # fmt: skip


def read(workdir):
    """The figures of a run's `compile_only.json`.

    Raises:
      InputError: there is none, or it is no such file.
    """
    path = pathlib.Path(workdir) / "compile_only.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; `--compile_only=TOPOLOGY --workdir={workdir}` writes it") from error


def row(name, found):
    """The cells of a run's row, in the order of `HEAD`.

    Args:
      name: of the run.
      found: as `read` gives it.
    """
    start = [name, found["topology"], " x ".join(map(str, found["mesh"].values())), f"{found['batch_size']}"]
    if not found["fits"]:
        return [*start, "does not fit", f"{found['unsharded'] / found['capacity']:.1%}", *[""] * (len(HEAD) - 6)]
    times = [f"{1e3 * found['roofline'][bound]:.1f}" for bound in ("compute", "hbm", "interconnect")]
    if between := found["roofline"]["network"]:
        times[-1] += f" + {1e3 * between:.1f} between slices"
    kind, most = max(found["moved"].items(), key=lambda item: item[1]["bytes"], default=("nothing", {"bytes": 0}))
    return [
        *start, f"{found['total'] / GIB:.2f} of {found['capacity'] / GIB:.0f}",
        f"{found['unsharded'] / found['capacity']:.1%}", *times, f"{1e3 * found['step_seconds']:.1f}, {found['bound']}",
        f"{found['mfu']:.1%}", f"{kind}, {most['bytes'] / GIB:.2f} GiB",
    ]  # fmt: skip


def table(runs):
    """Markdown, a list of lines. `runs`: name -> figures."""
    lines = [HEAD, ["---", "---", "---", *["---:"] * (len(HEAD) - 4), "---"]]
    lines += [row(name, found) for name, found in runs.items()]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def main(argv=None):
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vision_jax.tools.pods", description=__doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    workdirs = parser.parse_args(argv).workdirs
    try:
        print("\n".join(table({pathlib.Path(workdir).name: read(workdir) for workdir in workdirs})))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
