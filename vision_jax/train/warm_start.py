"""First values from elsewhere: another run, or a weight file."""

import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax import registry
from vision_jax.functional import split
from vision_jax.train import checkpoint
from vision_jax.weights import load_weights


def load_variables(model, path, *, head="strict"):
    """An abstract model's variables, read from a run or a weight file.

    Args:
      model: the abstract model; it stays abstract.
      path: a run's workdir (its average is taken where it has one), or whatever `load_weights` takes.
      head: as `load_weights` takes it.

    Raises:
      InputError: nothing is there, or it does not fit.
    """
    source = path
    if (directory := pathlib.Path(path) / "checkpoints").is_dir():
        found = checkpoint.read(directory)
        prefix = "ema." if any(name.startswith("ema.") for name in found) else ""
        named = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        source = {name.partition(".")[2]: value for name, value in named.items()}  # without the collection
    return split(load_weights(nnx.clone(model), source, head=head))[1]


def warm_start(state, path, run):
    """The initial state with the model's variables from `path`; a classifier of other classes keeps its initial values."""
    variables = load_variables(run.model, path, head="new")
    places = jax.tree.map(lambda s: s.sharding, run.with_shardings(run.static.shapes))
    variables = jax.device_put(variables, places)
    averages = {"ema": jax.tree.map(jnp.copy, variables)} if "ema" in state else {}
    return {**state, **variables, **averages}


def frozen_variables(run):
    """The arrays that the task's loss needs beside the model's: a teacher's."""
    task = run.task
    if not task.teacher:
        return {}
    model = registry.create_model(task.teacher, abstract=True, **task.model_fields())
    return {"teacher": load_variables(model, task.teacher_weights)}
