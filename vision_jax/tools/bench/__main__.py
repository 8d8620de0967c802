"""Speed, compile time and memory of models and kernels: `python -m vision_jax.tools.bench [models] NAME...`.

    python -m vision_jax.tools.bench resnet18 "vit_tiny*" --batch 1 8 --train
    python -m vision_jax.tools.bench resnet18 --against timm --threads 2 --json out.json --markdown out.md
    python -m vision_jax.tools.bench kernels "swin*"
    python -m vision_jax.tools.bench kernels "swin*" --tune
    python -m vision_jax.tools.bench traffic v6e:2x4

Beside a peer everything is run in turns, in one process, with as many threads on both sides; times are medians with
quartiles, and a ratio is the peer's time over ours in the same round: above 1 ours is faster.
"""

import argparse
import json
import pathlib
import shlex
import sys

from vision_jax.errors import InputError
from vision_jax.tools.bench import kernels, machine, model_tables, models, traffic, tuning

COMMANDS = {"models": models, "kernels": kernels, "traffic": traffic}
MEASURES = {"models": models, "kernels": kernels, "tune": tuning, "traffic": traffic}
TABLES = {"models": model_tables, "kernels": kernels, "tune": tuning, "traffic": traffic}


def main(argv=None):
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv if {*argv[:1]} & {*COMMANDS, "-h", "--help"} else ["models", *argv])
    try:
        threads = machine.use_threads(args.threads)
        environment = {"command": shlex.join(["python", "-m", "vision_jax.tools.bench", *argv])}
        environment |= machine.describe(threads)
        task = "tune" if getattr(args, "tune", False) else args.command
        results = MEASURES[task].measure(args, threads, tell=lambda line: print(line, flush=True))
        if args.json:
            text = json.dumps({"environment": environment, "results": results}, indent=1)
            pathlib.Path(args.json).write_text(text + "\n")
        if args.markdown:
            lines = [f"- {what}: `{text}`" for what, text in environment.items()] + TABLES[task].tables(results)
            pathlib.Path(args.markdown).write_text("\n".join(lines) + "\n")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="vision_jax.tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        options = commands.add_parser(
            name, help=command.__doc__.partition("\n")[0], description=command.__doc__, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.add_arguments(options)
        options.add_argument("--threads", type=int, help="of both sides on CPUs; all cores that the process may use")
        options.add_argument("--json", metavar="FILE", help="where the results go, with every figure")
        options.add_argument("--markdown", metavar="FILE", help="where the tables go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
