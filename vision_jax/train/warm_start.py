"""First values from elsewhere: another run, or a weight file."""

import pathlib

import jax
import jax.numpy as jnp

from vision_jax.parallel.processes import place
from vision_jax.train import checkpoint
from vision_jax.weights import load


def load_variables(static, path, *, head="strict", seed=0):
    """A model's variables, read from a run or a weight file.

    Args:
      static: the model.
      path: a run's workdir (its average is taken where it has one), or whatever `load_weights` takes.
      head, seed: as `load_weights` takes them.

    Raises:
      InputError: nothing is there, or it does not fit.
    """
    source = path
    if (directory := pathlib.Path(path) / "checkpoints").is_dir():
        found = checkpoint.read(directory)
        prefix = "ema." if any(name.startswith("ema.") for name in found) else ""
        named = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        source = {name.partition(".")[2]: value for name, value in named.items()}  # without the collection
    return load.load_variables(static, source, head=head, seed=seed)


def warm_start(state, path, run):
    """The initial state with the model's variables from `path`, but for a classifier of another number of classes."""
    variables = load_variables(run.static, path, head="skip", seed=run.config.seed)
    places = jax.tree.map(lambda s: s.sharding, run.with_shardings(run.static.shapes))
    variables = place(variables, places)
    averages = {"ema": jax.tree.map(jnp.copy, variables)} if "ema" in state else {}
    return {**state, **variables, **averages}
