"""Attention kernels beside the XLA path, PyTorch's attention on partitioned windows, and NATTEN.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m vision_jax.tools.kernel_bench --json out.json --markdown out.md
    python -m vision_jax.tools.kernel_bench --cases "swin*" --natten_backend flex-fna

bfloat16, forward and forward with backward. Each peer takes part where it is installed, and its result is compared with
ours first. Times are medians over rounds in which everyone has a turn; of several calls that wait for each other on the
device only, so that what it costs to start a call does not count unless it is longer than the work. The floor is the
least time that the chip needs for the products, or for reading every operand and writing every result once.
"""

import argparse
import fnmatch
import functools
import json
import pathlib
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import InputError, unknown
from vision_jax.kernels import explain, neighborhood_attention, window_attention
from vision_jax.tools import kernel_peers

OPERATORS = {"window": window_attention, "neighborhood": neighborhood_attention}
# (operations, bytes) a second at most, dense bfloat16: NVIDIA's data sheets.
CHIPS = {"NVIDIA H200": (989e12, 4800e9), "NVIDIA H100": (989e12, 3350e9)}


class Case(NamedTuple):
    """A call of an operator. `bias`: whether a learned one is added, for windows [heads, N, N]."""

    operator: str
    batch: int
    size: tuple
    heads: int
    head_dim: int
    options: dict
    bias: bool = False

    @property
    def keys(self):
        """Keys that a query sees."""
        return self.options["window_size"] ** 2 if self.operator == "window" else self.options["kernel_size"] ** 2


def _cases():
    out = {}
    for stage, (side, heads) in enumerate(((56, 3), (28, 6), (14, 12), (7, 24)), 1):
        options = {"window_size": 7, "shift": 3 if side > 7 else 0}
        out[f"swin_t {stage} at 224"] = Case("window", 128, (side, side), heads, 32, options, bias=True)
    for stage, (side, heads) in enumerate(((256, 4), (128, 8), (64, 16), (32, 32)), 1):
        options = {"window_size": 8, "shift": 4}
        out[f"swin_b {stage} at 1024"] = Case("window", 8, (side, side), heads, 32, options, bias=True)
    for resolution, batch, sides in ((224, 128, (56, 28, 14, 7)), (1024, 8, (256, 128, 64, 32))):
        for stage, (side, heads) in enumerate(zip(sides, (4, 8, 16, 32), strict=True), 1):
            for kernel in (7, 13, 31):
                if kernel <= side:
                    name = f"nat_b {stage} at {resolution}, kernel {kernel}"
                    out[name] = Case("neighborhood", batch, (side, side), heads, 32, {"kernel_size": kernel})
    for kernel in (7, 13, 31):
        out[f"map of 256, kernel {kernel}"] = Case("neighborhood", 4, (256, 256), 8, 64, {"kernel_size": kernel})
    return out


CASES = _cases()


def operands(case):
    """float32 numpy arrays of a case: q, k, v, the gradient of the result, and the bias or None."""
    rng = np.random.default_rng(0)
    shape = (case.batch, *case.size, case.heads, case.head_dim)
    maps = [rng.standard_normal(shape, np.float32) for _ in range(4)]
    bias = rng.standard_normal((case.heads, case.keys, case.keys), np.float32) if case.bias else None
    return *maps, bias


def ours(case, arrays, implementation):
    """{"forward", "train": functions that start a call, "wait": of what one gave, returns when that is done}."""
    *maps, bias = arrays
    q, k, v, d_out = (jnp.asarray(x, jnp.bfloat16) for x in maps)
    bias = None if bias is None else jnp.asarray(bias)

    def attend(q, k, v, bias):
        return OPERATORS[case.operator](q, k, v, bias=bias, implementation=implementation, **case.options)

    def train(q, k, v, bias, d_out):
        out, pull = jax.vjp(attend, q, k, v, bias)
        return out, pull(d_out)

    forward, train = jax.jit(attend), jax.jit(train)
    return {
        "forward": lambda: forward(q, k, v, bias),
        "train": lambda: train(q, k, v, bias, d_out),
        "wait": jax.block_until_ready,
    }


def floors(case, kind, chip):
    """Seconds that the products and the memory need at least: {"flops": ..., "bandwidth": ...}.

    Products of forward: 2; with backward 5 more, one of which computes the scores again. Maps moved: q, k, v and the
    result; then these without the result, its gradient, and three gradients.
    """
    tokens = case.batch * case.size[0] * case.size[1] * case.heads
    products, maps = (2, 4) if kind == "forward" else (7, 11)
    flops, moved = products * 2 * tokens * case.keys * case.head_dim, maps * tokens * case.head_dim * 2
    return {"flops": flops / chip[0], "bandwidth": moved / chip[1]}


def seconds_in_turns(everyone, kind, rounds, repeats):
    """{name: seconds of a call, the median over the rounds}, of dicts as `ours` gives them."""
    taken = {name: [] for name in everyone}
    for _ in range(rounds):
        for name, each in everyone.items():
            call, wait = each[kind], each["wait"]
            wait(call())
            start = time.perf_counter()
            for _ in range(repeats):
                result = call()
            wait(result)
            taken[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(each) for name, each in taken.items()}


def measure(cases, *, rounds=10, repeats=20, natten_backend=None, tell=print):
    """Runs cases.

    Args:
      cases: {name: Case}.
      rounds: turns of everyone.
      repeats: calls of a turn.
      natten_backend: NATTEN's name of one of its; None leaves the choice to it.
      tell: called with a line about each result.

    Returns:
      A list of dicts: "case", "kind" ("forward" or "train"), "implementation" of ours, "seconds" {who: of a call},
      "difference" {peer: of its result from ours, RMS over ours'}, "floors" (see `floors`; absent for other chips).
    """
    kind_of_device = jax.devices()[0].device_kind
    chip = next((rates for name, rates in CHIPS.items() if name in kind_of_device), None)
    results = []
    for name, case in cases.items():
        arrays = operands(case)
        chosen = _chosen(case)
        who = {f"ours ({chosen})": ours(case, arrays, chosen)}
        if chosen != "xla":
            who["ours (xla)"] = ours(case, arrays, "xla")
        peers = kernel_peers.peers(case, arrays, natten_backend)
        for kind in ("forward", "train"):
            result = {"case": name, "kind": kind, "implementation": chosen}
            able = {title: each for title, each in (who | peers).items() if kind in each}
            result["seconds"] = seconds_in_turns(able, kind, rounds, repeats)
            if kind == "forward":
                own = np.asarray(next(iter(who.values()))["forward"](), np.float64)
                result["difference"] = {title: _rms(each["numpy"]() - own) / _rms(own) for title, each in peers.items()}
            if chip:
                result["floors"] = floors(case, kind, chip)
            results.append(result)
            tell(f"{name}, {kind}: " + ", ".join(f"{t} {1e3 * s:.3f} ms" for t, s in result["seconds"].items()))
    return results


def _chosen(case):
    shape = jax.ShapeDtypeStruct((case.batch, *case.size, case.heads, case.head_dim), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((case.heads, case.keys, case.keys), jnp.float32) if case.bias else None
    call = functools.partial(OPERATORS[case.operator], **case.options)
    return explain(call, shape, shape, shape, bias=bias)[0].implementation


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def to_markdown(environment, results):
    """A table for each kind: milliseconds, how many times ours is faster than each other, the fraction of the floor."""
    lines = [f"- {what}: `{text}`" for what, text in environment.items()]
    for kind, title in (("forward", "Forward"), ("train", "Forward and backward")):
        lines += [
            "",
            f"**{title}**",
            "",
            "| case | ours | ms | beside | of the floor |",
            "| --- | --- | ---: | --- | ---: |",
        ]
        for row in (row for row in results if row["kind"] == kind):
            own, *others = row["seconds"].items()
            beside = ", ".join(f"{t} {1e3 * s:.3f} ms (**{s / own[1]:.2f}x**)" for t, s in others)
            floor = f"{max(row['floors'].values()) / own[1]:.0%}" if "floors" in row else ""
            lines.append(f"| {row['case']} | {row['implementation']} | {1e3 * own[1]:.3f} | {beside} | {floor} |")
    return "\n".join(lines) + "\n"


def main(argv=None):
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["*"], help="names or wildcard patterns; all")
    parser.add_argument("--rounds", type=int, default=10, help="turns of everyone")
    parser.add_argument("--repeats", type=int, default=20, help="calls of a turn")
    parser.add_argument("--natten_backend", help="NATTEN's, as flex-fna; its own choice")
    parser.add_argument("--json", metavar="FILE", help="where the results go")
    parser.add_argument("--markdown", metavar="FILE", help="where the tables go")
    args = parser.parse_args(argv)
    try:
        cases = {}
        for pattern in args.cases:
            found = {name: case for name, case in CASES.items() if fnmatch.fnmatch(name, pattern)}
            if not found:
                raise unknown("case", pattern, CASES)
            cases |= found
        results = measure(cases, rounds=args.rounds, repeats=args.repeats, natten_backend=args.natten_backend)
    except InputError as error:
        parser.error(str(error))
    environment = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, **kernel_peers.versions()}
    if args.json:
        text = json.dumps({"environment": environment, "results": results}, indent=1) + "\n"
        pathlib.Path(args.json).write_text(text)
    if args.markdown:
        pathlib.Path(args.markdown).write_text(to_markdown(environment, results))


if __name__ == "__main__":
    main()
