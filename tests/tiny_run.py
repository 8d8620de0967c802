"""Runs that take a second or two: the recipes with a model, a length and batches as small as can be."""

import pathlib

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
VIT = {
    "model.depth": 1,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "total": 12,
    "data.batch_size": 32,
    "eval.batch_size": 120,
    "eval.every": 6,
    "checkpoint.every": 4,
    "optim.schedule.warmup": 2,
    "log_every": 1,
}
RESNET = {
    **{field: value for field, value in VIT.items() if not field.startswith("model.")},
    "model.depths": (1, 1),
    "model.embed_dims": (8, 16),
}


def overrides(fields=(), **more):
    """{"optim.lr": 1} -> ["--config.optim.lr=1"]; in keywords "__" stands for the dot."""
    fields = {**dict(fields), **{name.replace("__", "."): value for name, value in more.items()}}
    return [f"--config.{field}={value}" for field, value in fields.items()]


def arguments(workdir, recipe="digits_vit.py", fields=VIT, **more):
    """What the command is given to train such a run."""
    return ["--config", str(CONFIGS / recipe), "--workdir", str(workdir), *overrides(fields, **more)]


def config(recipe="digits_vit.py", fields=VIT, **more):
    """The config of such a run."""
    from vision_jax.train.config import load_config

    given = [word.removeprefix("--config.").partition("=") for word in overrides(fields, **more)]
    return load_config(str(CONFIGS / recipe), [(field, value) for field, _, value in given])
