"""Tile sizes of the kernels on the device at hand: which candidate is faster than the one in use.

Cases whose calls the table in `kernels/tile_table.py` does not tell apart are tuned together: a tile must serve them
all, in the forward pass and with the backward one, and fit in float32 where the one in use does.
"""

import statistics

import jax.numpy as jnp

from vision_jax.errors import InputError
from vision_jax.kernels import dispatch, tile_table
from vision_jax.tools.bench import kernels
from vision_jax.tools.bench.timing import interleaved, speedup

GAIN = 1.03  # times as fast that a tile must be for a row: less may be chance


def measure(args, threads, tell=print):
    """Tries what the arguments ask for.

    Args:
      args: see `kernels.add_arguments`.
      threads: of a CPU; not used.
      tell: called with a line about each candidate, and last with the rows to add to the table.

    Returns:
      A list of dicts, one for each kernel and kind of call: "kernel", "call", "cases" (names), "used" (the tile in
      use), "gains" {tile: how many times as fast, a geometric mean}, "refused" {tile: why}, "row" (a line for the
      table, or None).

    Raises:
      InputError: there is no accelerator, see also `kernels.check`.
    """
    cases, device = kernels.check(args), dispatch.device()
    if device[0] not in ("tpu", "gpu"):
        raise InputError(f"--tune times kernels where they run: on a TPU or a GPU, and this is a {device[0]}")
    results = tune(cases, device, args.repeats, args.calls, tell)
    rows = [result["row"] for result in results if result["row"]]
    tell(
        "\n".join(
            ["rows for TABLE in kernels/tile_table.py:", *rows] if rows else ["no tile is faster than that in use"]
        )
    )
    return results


def tune(cases, device, repeats, calls, tell, timed=interleaved):
    """The work of `measure`.

    Args:
      cases: {name: `kernels.Case`}.
      device: (platform, kind), whose kernel is timed and for which the rows are.
      repeats, calls: rounds, and calls of a turn.
      tell: see `measure`.
      timed: see `timing.interleaved`.
    """
    return [
        _tune(kernel, call, *group, device, (repeats, calls), tell, timed)
        for (kernel, call), group in _groups(cases, device[0]).items()
    ]


def _groups(cases, platform):
    """{(kernel, call): ({name: case}, the tile in use, candidates)} of those that the platform's kernel takes."""
    groups = {}
    for name, case in cases.items():
        with tile_table.asked() as asked:
            taken = kernels.chosen_implementation(case, platform) == platform
        for ask in asked:
            if taken and ask.kernel.endswith(f".{platform}"):
                members, *_ = groups.setdefault((ask.kernel, ask.call), ({}, ask.tile, ask.candidates))
                members[name] = case
    return groups


def _tune(kernel, call, cases, used, candidates, device, rounds, tell, timed):
    """One of `measure`'s results."""
    speedups, refused = {tile: [] for tile in candidates if tile != used}, {}
    for name, case in cases.items():
        arrays = kernels.operands(case)
        able = {t: _built(kernel, t, case, arrays, device[0]) for t in (used, *speedups) if t not in refused}
        refused |= {tile: built for tile, built in able.items() if isinstance(built, str)}
        if used in refused:
            raise InputError(f"{name}: {kernel} does not run with its own tile {used}: {refused[used]}")
        for kind in kernels.KINDS:
            turns = {tile: kernels.turn(built, kind, rounds[1]) for tile, built in able.items() if tile not in refused}
            seconds = timed(turns, rounds[0])
            for tile in turns.keys() - {used}:
                speedups[tile].append(speedup(seconds[tile], seconds[used]).median)
    gains = {tile: statistics.geometric_mean(s) for tile, s in speedups.items() if tile not in refused}
    said = {tile: f"{gain:.2f} times as fast as {used}" for tile, gain in gains.items()} | refused
    for tile, what in said.items():
        tell(f"{kernel} {call}, {tile}: {what}")
    best = max(gains, key=gains.get, default=None)
    row = None
    if best is not None and gains[best] >= GAIN:
        row = f"    {(device[1], kernel, call)}: {best},  # {said[best]}: {', '.join(cases)}"
    return dict(kernel=kernel, call=call, cases=[*cases], used=used, gains=gains, refused=refused, row=row)


def _built(kernel, tile, case, arrays, platform):
    """What `kernels.ours` gives, compiled with this tile, or why there is nothing."""
    alone = kernels.chosen_implementation(case, platform, jnp.float32)
    with tile_table.trying(kernel, tile):
        for dtype, needed in ((jnp.bfloat16, platform), (jnp.float32, alone)):
            if kernels.chosen_implementation(case, platform, dtype) != needed:
                return f"not taken in {jnp.dtype(dtype).name}"
        try:
            built = kernels.ours(case, arrays, platform)
            for kind in kernels.KINDS:
                built["wait"](built[kind]())
        except Exception as error:  # compilers raise what they like
            return f"not compiled: {str(error).splitlines()[0]}"
    return built


def tables(results):
    """Lines: how many times as fast as the tile in use each candidate is; and the rows."""
    lines = ["", "| kernel | call | tile in use | candidates: times as fast | cases |", "|---|---|---|---|---|"]
    for r in results:
        gains = ", ".join(f"{tile}: {gain:.2f}" for tile, gain in r["gains"].items())
        cells = (r["kernel"], r["call"], r["used"], gains, ", ".join(r["cases"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", "```python", *[r["row"].strip() for r in results if r["row"]], "```"]
