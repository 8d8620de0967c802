"""Runs that take a second or two: the recipes with a model, a length and batches as small as can be."""

import json
import pathlib

import numpy as np

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


def records(workdir, kind=""):
    """The records of `metrics.jsonl` that have such a metric."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if not kind or kind in record]


def state_of(workdir, *collections):
    """The newest checkpoint's arrays by name; all of them if no collection is named."""
    from vision_jax.train import checkpoint

    every = ("step", "data_position", "params", "batch_stats", "opt_state", "ema")
    return checkpoint.read(pathlib.Path(workdir) / "checkpoints", collections or every)


def assert_same(got, expected):
    """Two dicts of arrays are equal bit for bit."""
    assert got.keys() == expected.keys()
    assert not [name for name in expected if not np.array_equal(got[name], expected[name])]


def by_name(tree):
    """The leaves of a tree of arrays by their dotted names."""
    import jax

    from vision_jax.names import dotted

    return {dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
