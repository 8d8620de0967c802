"""Models' inference and training, alone or beside a peer's."""

import jax
import numpy as np

from vision_jax.errors import InputError, unknown
from vision_jax.registry import family_of, list_models, model_info
from vision_jax.tools.bench.ours import Ours
from vision_jax.tools.bench.peers import PEERS
from vision_jax.tools.bench.timing import CLOCKS, interleaved, speedup, spread

DTYPES = ("float32", "bfloat16")


def add_arguments(parser):
    """The options of the subcommand."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="models' names, or wildcard patterns")
    parser.add_argument("--against", help=f"a peer to compare with: {', '.join(PEERS)}")
    parser.add_argument("--torch_compile", action="store_true", help="the peer compiled by torch too")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="batch sizes")
    parser.add_argument("--train", action="store_true", help="training steps too")
    parser.add_argument("--dtype", default="float32", help=f"of the computation: {', '.join(DTYPES)}")
    parser.add_argument("--img_size", type=int, help="side of the images, where it is not the model's own")
    parser.add_argument("--repeats", type=int, default=15, help="rounds; in each, everyone has a turn")
    parser.add_argument(
        "--clock", default="wall", help="wall, or cpu: processor seconds, on a machine that others load"
    )


def check(args):
    """The names that the patterns match.

    Raises:
      InputError: what is wrong with the arguments.
    """
    for batch in args.batch:
        if batch < 1:
            raise InputError(f"--batch={batch}: batches have at least 1 image")
    if args.img_size is not None and args.img_size < 1:
        raise InputError(f"--img_size={args.img_size}: images have at least 1 pixel a side")
    if args.repeats < 1:
        raise InputError(f"--repeats={args.repeats}: at least 1 round is run")
    if args.dtype not in DTYPES:
        raise unknown("--dtype", args.dtype, DTYPES)
    if args.clock not in CLOCKS:
        raise unknown("--clock", args.clock, CLOCKS)
    if args.clock == "cpu" and jax.default_backend() != "cpu":
        raise InputError(f"--clock=cpu does not see the time of a {jax.default_backend()}")
    if args.against is not None and args.against not in PEERS:
        raise unknown("peer: --against", args.against, PEERS)
    if args.torch_compile and args.against is None:
        raise InputError("--torch_compile compiles the peer: name one, as --against timm")
    names = []
    for pattern in args.names:
        found = list_models(pattern) or [pattern]
        model_info(found[0])  # of NAME.TAG too; raises where there is none
        names += [name for name in found if name not in names]
    return names


def measure(args, threads, tell=print):
    """Runs what the arguments ask for.

    Args:
      args: see `add_arguments`.
      threads: of the peers on CPUs.
      tell: called with a line about each result.

    Returns:
      A list of dicts: "model", "family", "clock", "kind" ("forward" or "train"), "batch", "ours" {"seconds", ...} and
      "peers" {name: {"seconds", "ratio"}}; seconds of a call and ratios are (median, low, high): `timing.Spread`.

    Raises:
      InputError: see `check`.
    """
    names = check(args)
    peer = PEERS[args.against](threads) if args.against else None
    results = []
    for name in names:
        fields = {"dtype": args.dtype} | ({"img_size": args.img_size} if args.img_size else {})
        ours = Ours(name, fields)
        others = {}
        for compiled in (False, True)[: 1 + args.torch_compile] if peer else ():
            title = f"{args.against} compiled" if compiled else args.against
            others[title] = peer.model(name, args.img_size, args.dtype, compiled)
        others = {title: other for title, other in others.items() if other}
        for batch in args.batch:
            for kind in ("forward", "train")[: 1 + args.train]:
                result = compare(ours, others, kind, batch, args.repeats, CLOCKS[args.clock])
                about = {"model": name, "family": family_of(name.partition(".")[0]), "clock": args.clock}
                results.append({**about, **result})
                tell(_line(results[-1]))
    return results


def compare(ours, others, kind, batch, rounds, clock):
    """One model, one kind, one batch size: its result, see `measure`."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((batch, *ours.image_shape)).astype(np.float32)]
    if kind == "train":
        inputs.append(rng.integers(0, ours.num_classes, batch))
    calls = {"ours": getattr(ours, kind)(*inputs)}
    calls |= {title: getattr(other, kind)(*inputs) for title, other in others.items()}
    for call in calls.values():
        call()
    seconds = interleaved(calls, rounds, clock)
    own = spread(seconds["ours"])
    return {
        "kind": kind,
        "batch": batch,
        "ours": {"seconds": own, **calls["ours"].figures(own.median)},
        "peers": {
            title: {"seconds": spread(seconds[title]), "ratio": speedup(seconds["ours"], seconds[title])}
            for title in others
        },
    }


def _line(result):
    median = result["ours"]["seconds"].median
    line = f"{result['model']:32} {result['kind']:7} batch {result['batch']:3}: "
    line += f"{1e3 * median:8.1f} ms {result['batch'] / median:8.1f} images/s"
    for title, found in result["peers"].items():
        line += f", {found['ratio'].median:.2f}x {title} ({1e3 * found['seconds'].median:.1f} ms)"
    return line
