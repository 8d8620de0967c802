"""The command: train, evaluate, predict.

    python -m vision_jax.main --config configs/digits_vit.py --workdir runs/digits
    python -m vision_jax.main --mode=eval --workdir runs/digits
    python -m vision_jax.main --mode=predict --workdir runs/digits --images='photos/*.png'

Any field of the config is overridden by --config.field=value, as --config.optim.lr=3e-4.
"""

import argparse
import pathlib
import sys

from vision_jax.errors import InputError, unknown

MODES = ("train", "eval", "predict")


def _parser():
    parser = argparse.ArgumentParser(
        prog="vision-jax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        help="a recipe, as configs/digits_vit.py or configs/folder.py:DIRECTORY; when evaluating or predicting, the workdir's own by default",
    )
    parser.add_argument("--workdir", help="the run's directory: checkpoints, config, metrics, pictures")
    parser.add_argument("--mode", default="train", help="train (the default; resumes), eval, predict")
    parser.add_argument("--images", nargs="+", help="predict: image files, patterns or directories")
    parser.add_argument("--step", type=int, help="eval, predict: the checkpoint's step; the newest by default")
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
            if not words:
                raise InputError(f"{word} needs a value: {word}=...")
            value = words.pop(0)
        overrides.append((field, value))
    return overrides, rest


def run(argv):
    """Does what the arguments say; raises what goes wrong."""
    overrides, rest = _split_overrides(argv)
    parser = _parser()
    args, extra = parser.parse_known_args(rest)
    if extra:
        known = [action.option_strings[-1] for action in parser._actions if action.option_strings]
        raise unknown("argument", extra[0], known)
    if args.mode not in MODES:
        raise unknown("--mode", args.mode, MODES)
    if not args.workdir:
        raise InputError("--workdir is needed: the directory of the run, as --workdir runs/digits")
    if args.images and args.mode != "predict":
        raise InputError("--images is for --mode=predict")
    from vision_jax.train import config as configs
    from vision_jax.train.logs import configure_logging

    configure_logging()

    if args.mode == "train":
        from vision_jax.train.loop import train

        if not args.config:
            raise InputError("--config is needed: a recipe, as --config configs/digits_vit.py")
        train(configs.load_config(args.config, overrides), args.workdir)
        return
    if args.config:
        config = configs.load_config(args.config, overrides)
    else:
        config = configs.read_config(pathlib.Path(args.workdir) / "config.json", overrides)
    if args.mode == "eval":
        from vision_jax.train.use import evaluate_checkpoint

        evaluate_checkpoint(config, args.workdir, args.step)
    else:
        from vision_jax.train.use import predict_files

        if not args.images:
            raise InputError("--images is needed: files to classify, as --images photos/*.png")
        predict_files(config, args.workdir, args.images, args.step)


def main(argv=None):
    """The console script: 0, or 2 after one clear message."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        run(argv)
    except (ValueError, OSError, ArithmeticError) as error:
        if "--debug" in argv:
            raise
        print(f"error: {error} (--debug shows where)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
