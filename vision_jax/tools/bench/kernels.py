"""Attention kernels beside the XLA path, PyTorch's attention on partitioned windows, and NATTEN.

bfloat16, forward and forward with backward. Each peer takes part where it is installed, and its result is compared with
ours first; linear attention has none. A turn is several calls that wait for each other on the device only, so that what
it costs to start a call does not count unless it is longer than the work. The floor is the least time that the chip
needs for the products, or for reading every operand and writing every result once.
"""

import fnmatch
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import InputError, unknown
from vision_jax.kernels import dispatch, explain, linear_attention, neighborhood_attention, window_attention
from vision_jax.layers.rotary import axis_angles
from vision_jax.models import ravlt, vir
from vision_jax.parallel.chips import chip_of
from vision_jax.tools.bench import kernel_peers
from vision_jax.tools.bench.model_tables import milliseconds, times
from vision_jax.tools.bench.timing import interleaved, speedup, spread

OPERATORS = {"window": window_attention, "neighborhood": neighborhood_attention, "linear": linear_attention}
KINDS = {"forward": "Forward", "train": "Forward and backward"}


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
        """Keys that a query sees; of linear attention the rows of the state."""
        if self.operator == "linear":
            return self.head_dim
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
    for tokens, batch in ((4096, 16), (65536, 1)):
        out[f"l2vit_b 1 of {tokens} tokens"] = Case("linear", batch, (tokens,), 4, 32, {})
        side = math.isqrt(tokens)
        options = {"normalizer": True, "rotary": (axis_angles(side, ravlt.frequencies(96)),) * 2}
        out[f"ravlt_b 2 of {tokens} tokens"] = Case("linear", batch, (side, side), 2, 96, options)
        options = {"causal": True, "log_decay": vir.log_decays(12)}
        out[f"vir_b of {tokens} tokens"] = Case("linear", batch, (tokens,), 12, 64, options)
        name = f"normalised linear, {tokens} tokens"
        out[name] = Case("linear", batch, (tokens,), 8, 32, {"normalizer": True})
    return out


CASES = _cases()


def operands(case):
    """float32 numpy arrays of a case: q, k, v, the gradient of the result, and the bias or None.

    Queries and keys of linear attention are positive, as features are: what normalises is then not near 0.
    """
    rng = np.random.default_rng(0)
    shape = (case.batch, *case.size, case.heads, case.head_dim)
    maps = [rng.standard_normal(shape, np.float32) for _ in range(4)]
    maps[:2] = map(np.abs, maps[:2]) if case.operator == "linear" else maps[:2]
    bias = rng.standard_normal((case.heads, case.keys, case.keys), np.float32) if case.bias else None
    return *maps, bias


def ours(case, arrays, implementation):
    """{"forward", "train": functions that start a call, "wait": of what one gave, returns when that is done}."""
    *maps, bias = arrays
    q, k, v, d_out = (jnp.asarray(x, jnp.bfloat16) for x in maps)
    bias = None if bias is None else jnp.asarray(bias)

    def attend(q, k, v, bias):
        biased = {} if bias is None else {"bias": bias}
        return OPERATORS[case.operator](q, k, v, implementation=implementation, **biased, **case.options)

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

    Products of forward: 2; with backward 5 more, one of which computes the scores, or the state, again. Maps moved: q,
    k, v and the result; then these without the result, its gradient, and three gradients.
    """
    tokens = case.batch * math.prod(case.size) * case.heads
    products, maps = (2, 4) if kind == "forward" else (7, 11)
    flops, moved = products * 2 * tokens * case.keys * case.head_dim, maps * tokens * case.head_dim * 2
    return {"flops": flops / chip.flops, "bandwidth": moved / chip.bandwidth}


def add_arguments(parser):
    """The options of the subcommand."""
    parser.add_argument("cases", nargs="*", metavar="CASE", default=["*"], help="names or wildcard patterns; all")
    parser.add_argument("--repeats", type=int, default=10, help="rounds; in each, everyone has a turn")
    parser.add_argument("--calls", type=int, default=20, help="of a turn")
    parser.add_argument("--tune", action="store_true", help="try other tile sizes instead, and print the faster ones")
    parser.add_argument("--natten_backend", help="NATTEN's name of one of its, as flex-fna; its own choice")


def check(args):
    """The cases that the patterns match.

    Raises:
      InputError: what is wrong with the arguments.
    """
    for name in ("repeats", "calls"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}={getattr(args, name)}: at least 1")
    cases = {}
    for pattern in args.cases:
        found = {name: case for name, case in CASES.items() if fnmatch.fnmatch(name, pattern)}
        if not found:
            raise unknown("case", pattern, CASES)
        cases |= found
    return cases


def measure(args, threads, tell=print):
    """Runs what the arguments ask for.

    Args:
      args: see `add_arguments`.
      threads: of a CPU; the process is bound to them already.
      tell: called with a line about each result.

    Returns:
      A list of dicts: "case", "kind" ("forward" or "train"), "implementation" of ours, "seconds" {who: of a call},
      "ratio" {who else: their seconds over ours}, both `timing.Spread`s; "difference" {peer: of its result from ours,
      RMS over ours'}; "floors" (see `floors`; absent where the chip is not known).

    Raises:
      InputError: see `check`.
    """
    chip = chip_of(jax.devices()[0].device_kind)
    results = []
    for name, case in check(args).items():
        arrays = operands(case)
        chosen = chosen_implementation(case)
        who = {f"ours ({chosen})": ours(case, arrays, chosen)}
        if chosen != "xla":
            who["ours (xla)"] = ours(case, arrays, "xla")
        peers = kernel_peers.peers(case, arrays, args.natten_backend)
        for kind in KINDS:
            result = {"case": name, "kind": kind, "implementation": chosen}
            able = {title: turn(each, kind, args.calls) for title, each in (who | peers).items() if kind in each}
            own, *others = able
            taken = {title: [s / args.calls for s in turns] for title, turns in interleaved(able, args.repeats).items()}
            result["seconds"] = {title: spread(sample) for title, sample in taken.items()}
            result["ratio"] = {title: speedup(taken[own], taken[title]) for title in others}
            if kind == "forward":
                output = np.asarray(who[own]["forward"](), np.float64)
                result["difference"] = {t: _rms(each["numpy"]() - output) / _rms(output) for t, each in peers.items()}
            if chip:
                result["floors"] = floors(case, kind, chip)
            results.append(result)
            tell(f"{name}, {kind}: " + ", ".join(f"{t} {1e3 * s.median:.3f} ms" for t, s in result["seconds"].items()))
    return results


def chosen_implementation(case, kernel=None, dtype=jnp.bfloat16):
    """The kernel, of this device unless named, where it takes the case; else XLA."""
    shape = jax.ShapeDtypeStruct((case.batch, *case.size, case.heads, case.head_dim), dtype)
    biased = {"bias": jax.ShapeDtypeStruct((case.heads, case.keys, case.keys), jnp.float32)} if case.bias else {}
    kernel = kernel or dispatch.device()[0]
    call = functools.partial(OPERATORS[case.operator], implementation=kernel, **case.options)
    try:
        return explain(call, shape, shape, shape, **biased)[0].implementation
    except InputError:
        return "xla"


def turn(each, kind, calls):
    """A turn of one of `ours`: a function that starts so many calls and waits for them."""

    def turn():
        for _ in range(calls):
            result = each[kind]()
        each["wait"](result)

    return turn


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def tables(results):
    """Lines, a table for each kind: milliseconds, how many times as long each other takes, the floor over ours."""
    lines = []
    for kind, title in KINDS.items():
        lines += ["", f"**{title}**", "", "| case | ours | ms | beside | of the floor |", "|---|---|--:|---|--:|"]
        for row in (row for row in results if row["kind"] == kind):
            own = next(iter(row["seconds"].values()))
            beside = [f"{who} {milliseconds(row['seconds'][who])} ms, {times(r)}" for who, r in row["ratio"].items()]
            floor = f"{max(row['floors'].values()) / own.median:.0%}" if "floors" in row else ""
            cells = [row["case"], row["implementation"], milliseconds(own), "; ".join(beside), floor]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
