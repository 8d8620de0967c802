"""Weights in: strict, and every complaint at once."""

import logging
import re

import jax.numpy as jnp
import numpy as np

from vision_jax.errors import InputError, unknown
from vision_jax.functional import merge, split
from vision_jax.registry import fill
from vision_jax.weights.convert import dialects, entries, variable
from vision_jax.weights.layouts import FLAT, TORCH
from vision_jax.weights.sources import read

_log = logging.getLogger(__name__)


def load_weights(model, source, *, head="strict", seed=0):
    """Fills a model's parameters and statistics, in place.

    The names may be of any dialect that the model's class declares, or this library's own. Tables of positions made for
    another input size are resampled. Nothing is changed unless everything fits.

    Args:
      model: a model, concrete or abstract.
      source: a `.safetensors` or `.npz` file, a directory of safetensors files, "hf-hub:org/name[@revision]", or a
        mapping name -> array (numpy's, jax's or torch's; the values are copied).
      head: "strict"; or "skip": a classifier that is missing, too many or of another number of classes is left out, and
        the model's keeps its values (its initial ones where the model is abstract).
      seed: seed of these initial values.

    Returns:
      The model.

    Raises:
      InputError: with all names that are missing, unexpected or mis-shaped; or a source that cannot be read.
    """
    if head not in ("strict", "skip"):
        raise unknown("head", head, ("strict", "skip"))
    arrays = read(source)
    dialect, found = _recognise(model, arrays)
    is_head = _classifier(model, dialect)
    values, problems, head_problems = {}, [], []
    for entry in found:
        value, problem = _convert(entry, arrays)
        if problem:
            (head_problems if is_head(entry.names[0]) else problems).append(problem)
        else:
            values.setdefault(entry.path, []).append(value)
    for name in _unexpected(model, dialect, found, arrays):
        (head_problems if is_head(name) else problems).append(f"unexpected {name} {arrays[name].shape}")

    if head_problems and head == "skip":
        for entry in found:
            if is_head(entry.names[0]):  # all of it or nothing: half a classifier is none
                values.pop(entry.path, None)
        _log.info("the classifier is left out: %s", "; ".join(sorted(head_problems)))
    elif head_problems:
        hint = "" if problems else '\nhead="skip" leaves the classifier out'
        raise _error(model, dialect, problems + head_problems, hint)
    if problems:
        raise _error(model, dialect, problems)

    stacked = {entry.path for entry in found if entry.index is not None}
    for path, blocks in values.items():
        node = variable(model, path)
        # jnp.array copies, where device_put would share the memory of the caller's torch tensors
        node.set_value(jnp.array(np.stack(blocks) if path in stacked else blocks[0], node.get_value().dtype))
    return fill(model, seed)


def load_variables(static, source, *, head="strict", seed=0):
    """The variables that `load_weights` would fill a model with, for a model known by its `Static` alone.

    Args:
      static: what `split` gave.
      source, head, seed: as in `load_weights`.

    Returns:
      {"params": tree, "batch_stats": tree, ...}.
    """
    return split(load_weights(merge(static, static.shapes), source, head=head, seed=seed))[1]


def _recognise(model, arrays):
    """The dialect with the most names in the source, and the model's entries in it."""
    candidates = [(dialect, entries(model, dialect)) for dialect in dialects(model).values()]
    return max(candidates, key=lambda c: sum(name in arrays for entry in c[1] for name in entry.names))


def _convert(entry, arrays):
    """(value, None) or (None, what is wrong)."""
    missing = [name for name in entry.names if name not in arrays]
    if missing:
        shapes = dict(zip(entry.names, entry.reference_shapes, strict=True))
        wanted = ", ".join(f"{name} {shapes[name]}" for name in missing)
        return None, f"missing {wanted}" + ("" if entry.names == (entry.name,) else f", for {entry.name}")
    given = [arrays[name] for name in entry.names]
    if all(a.shape == shape for a, shape in zip(given, entry.reference_shapes, strict=True)):
        return entry.to_ours(given), None
    same_rank = all(a.ndim == len(shape) for a, shape in zip(given, entry.reference_shapes, strict=True))
    if same_rank and hasattr(entry.owner, "resample"):
        value = entry.owner.resample(entry.path[-1], entry.to_ours(given))
        if value.shape == entry.shape:
            return value, None
    wrong = zip(entry.names, given, entry.reference_shapes, strict=True)
    return None, "mis-shaped " + ", ".join(f"{n}: given {a.shape}, wanted {s}" for n, a, s in wrong if a.shape != s)


def _unexpected(model, dialect, found, arrays):
    expected = {name for entry in found for name in (*entry.names, *entry.beside)}
    ignored = getattr(model, "torch_ignore", ()) if dialect.layout in (TORCH, FLAT) else ()
    return [name for name in arrays if name not in expected and not any(re.search(p, name) for p in ignored)]


def _classifier(model, dialect):
    """Whether a reference's name is the classifier's: a predicate. The model itself may have none."""
    ours = getattr(model, "classifier", ("head",))
    prefixes = tuple(prefix for name in ours for prefix in dialect.rename(f"{name}."))
    return lambda name: name.startswith(prefixes)


def _error(model, dialect, problems, hint=""):
    lines = "".join(f"\n  {problem}" for problem in sorted(problems))
    count = f"{len(problems)} misfit" + "s" * (len(problems) > 1)
    return InputError(f"source, read as {dialect.name!r}, does not fit {type(model).__name__}, {count}:{lines}{hint}")
