"""The command: train, evaluate, predict; compile for a TPU slice that is not here.

    python -m vision_jax.main --config configs/digits_vit.py --workdir runs/digits
    python -m vision_jax.main --mode=eval --workdir runs/digits
    python -m vision_jax.main --mode=predict --workdir runs/digits --images='photos/*.png'
    python -m vision_jax.main --config configs/digits_vit.py --compile_only=v5e:2x2

In a run of several processes (hosts of a TPU slice, nodes with GPUs) each is given the same command, and --distributed.
Any field of the config is overridden by --config.field=value, as --config.optim.lr=3e-4.
"""

import argparse
import pathlib
import sys

from vision_jax import __version__
from vision_jax.errors import DivergedError, InputError, unknown

MODES = ("train", "eval", "predict")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; --help shows all arguments")


def _parser():
    parser = _Parser(
        prog="vision-jax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        help="a recipe, as configs/digits_vit.py or configs/folder.py:DIRECTORY; "
        "when evaluating or predicting, the workdir's own by default",
    )
    parser.add_argument("--workdir", help="the run's directory: checkpoints, config, metrics, pictures")
    parser.add_argument("--mode", default="train", help="train (the default; resumes), eval, predict")
    parser.add_argument("--images", nargs="+", help="predict: image files, patterns or directories")
    parser.add_argument("--step", type=int, help="eval, predict: the checkpoint's step; the newest by default")
    parser.add_argument(
        "--compile_only",
        metavar="TOPOLOGY",
        help="train: compile the step for a TPU slice, as v5e:16x16, and tell what it takes; needs libtpu, but neither "
        "TPUs nor data. With a workdir the figures go to its compile_only.json, too",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="train, eval: one of several processes, which find each other by themselves on TPU VMs, SLURM and GKE; "
        "elsewhere by the three arguments that follow",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process; the same in all")
    parser.add_argument("--num_processes", type=int, help="how many processes there are")
    parser.add_argument("--process_id", type=int, help="which of them this one is, from 0")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _split_overrides(argv):
    """Parts --config.field=value from the other arguments."""
    overrides, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
            continue
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"{word} needs a value: {word}=...")
            value = words.pop(0)
        overrides.append((field, value))
    return overrides, rest


def _arguments(argv):
    """(parsed arguments, overrides), checked as far as they can be without opening anything."""
    overrides, rest = _split_overrides(argv)
    parser = _parser()
    args, extra = parser.parse_known_args(rest)
    if extra:
        known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        raise unknown("argument", extra[0].partition("=")[0], [*known, "--config.FIELD=VALUE"])
    if args.mode not in MODES:
        raise unknown("--mode", args.mode, MODES)
    if args.compile_only is not None and args.mode != "train":
        raise InputError("--compile_only is for --mode=train: it compiles the training step")
    if not args.workdir and args.compile_only is None:
        raise InputError("--workdir is needed: the directory of the run, as --workdir runs/digits")
    if args.workdir and "://" in args.workdir:
        raise InputError(f"--workdir={args.workdir}: a directory is wanted; a bucket can be mounted as one")
    if args.mode == "train" and not args.config:
        raise InputError("--config is needed: a recipe, as --config configs/digits_vit.py")
    if args.mode == "train" and args.step is not None:
        raise InputError("--step is for --mode=eval and --mode=predict; training goes on from the newest checkpoint")
    if args.mode == "predict" and not args.images:
        raise InputError("--images is needed: files to classify, as --images photos/*.png")
    if args.mode != "predict" and args.images:
        raise InputError("--images is for --mode=predict")
    told = [args.coordinator is not None, args.num_processes is not None, args.process_id is not None]
    if any(told) and not all(told):
        raise InputError("--coordinator, --num_processes and --process_id are given together, or --distributed alone")
    args.distributed |= all(told)
    if all(told) and not 0 <= args.process_id < args.num_processes:
        raise InputError(f"--process_id={args.process_id}: 0 to {args.num_processes - 1}, for --num_processes")
    if args.distributed and (args.mode == "predict" or args.compile_only is not None):
        raise InputError("--distributed is for --mode=train and --mode=eval: one process is enough for this")
    return args, overrides


def run(argv):
    """Does what the arguments say; raises what goes wrong. Returns the exit code."""
    args, overrides = _arguments(argv)
    index = 0
    if args.distributed:  # before anything of JAX is used
        import jax

        from vision_jax.parallel import processes

        index = processes.start(args.coordinator, args.num_processes, args.process_id)
        processes.agree({"vision_jax": __version__, "jax": jax.__version__})
    from vision_jax.devices import check_devices
    from vision_jax.train import config as configs
    from vision_jax.train.logs import configure_logging

    configure_logging(index)
    if args.config:
        config = configs.load_config(args.config, overrides)
    else:
        config = configs.read_config(pathlib.Path(args.workdir) / "config.json", overrides)
    if args.compile_only is not None:
        from vision_jax.train.compile_only import compile_only

        return 0 if compile_only(config, args.compile_only, args.workdir) else 1
    check_devices()
    if args.mode == "train":
        from vision_jax.train.loop import train

        train(config, args.workdir)
    elif args.mode == "eval":
        from vision_jax.train.use import evaluate_checkpoint

        evaluate_checkpoint(config, args.workdir, args.step)
    else:
        from vision_jax.train.use import predict_files

        predict_files(config, args.workdir, args.images, args.step)
    return 0


def main(argv=None):
    """The console script.

    Returns:
      0; 2 after one clear message where the input is at fault; 1 where the loss diverged, or what was compiled does
      not fit; 130 where Ctrl-C ended it.
      Whatever else goes wrong is a bug, and keeps its traceback. A failure in one of several processes ends this one at
      once, with that status.
    """
    argv = sys.argv[1:] if argv is None else argv
    status = None
    try:
        status = _status(argv)
    finally:
        if processes := sys.modules.get("vision_jax.parallel.processes"):
            processes.end(status)
    return status


def _status(argv):
    try:
        return run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (InputError, OSError, DivergedError) as error:
        if "--debug" in argv:
            raise
        print(f"error: {error} (--debug shows where)", file=sys.stderr)
        return 1 if isinstance(error, DivergedError) else 2


if __name__ == "__main__":
    sys.exit(main())
