"""Grad-CAM: the places whose features speak for a class (Selvaraju et al., 2017, arXiv:1610.02391)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.functional import apply, at, replace, split, tap
from vision_jax.tools.visualize.grids import as_map, check_unrolled, grid_of


class Moved(nnx.Module):
    """A module whose output can be moved: what the class score's gradient is taken by."""

    def __init__(self, module):
        self.module, self.by = module, nnx.Param(jnp.zeros(()))

    def __call__(self, *args, **kwargs):
        output = self.module(*args, **kwargs)
        if not isinstance(output, jax.Array):
            raise InputError("its output is no single array")
        return tap(self, "moved", output + self.by[...])


def default_layer(model):
    """The last layer with a map that the class score depends on everywhere.

    The last stage; of ViTs the norm before the last attention, as from there only the class token goes on.
    """
    if hasattr(model, "stages"):
        return f"stages.{len(model.stages) - 1}"
    last = len(model.blocks) - 1
    has_norm = hasattr(at(model.blocks, (last if isinstance(model.blocks, nnx.List) else str(last),)), "norm1")
    return f"blocks.{last}" + ".norm1" * has_norm


def grad_cam(model, images, labels=None, layer=None):
    """Grad-CAM maps: relu(sum_k a_k A_k), where a_k is the mean over places of the score's gradient (equations 1, 2).

    Args:
      model: a model with parameters and a classifier.
      images: [B, H, W, C], normalised.
      labels: for which class of each image, int [B]; the likeliest by default.
      layer: name of the module whose output A is; `default_layer` by default.

    Returns:
      (maps [B, rows, columns], not scaled, labels [B], their probabilities [B]).

    Raises:
      InputError: no classifier, a layer that is not there or has no map, labels out of range.
    """
    if not model.config.num_classes:
        raise InputError(f"Grad-CAM needs a classifier: {model.name} was created with num_classes=0")
    check_unrolled(model)
    layer = layer or default_layer(model)
    images = jnp.asarray(images)
    static, variables, shape = _moved(model, images, layer)
    grid = _grid(model, layer, shape, images)
    if grid is None:
        raise InputError(f"layer={layer!r} gives {shape}, no map of the image; one of {default_layer(model)!r}'s kind")

    def scores(by, variables, images, labels):
        params = jax.tree.map(lambda leaf: leaf, variables["params"])  # a copy of the tree's nodes
        _at(params, layer)["by"] = by
        logits, state = apply(static, {**variables, "params": params}, images, capture=f"{layer}.moved")
        chosen = logits.argmax(-1) if labels is None else labels
        picked = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
        probabilities = jnp.take_along_axis(jax.nn.softmax(logits), chosen[:, None], axis=-1)[:, 0]
        return picked.sum(), (state["captured"][f"{layer}.moved"], chosen, probabilities)

    labels = None if labels is None else _checked(labels, len(images), model.config.num_classes)
    still = jnp.zeros(shape.shape, shape.dtype)
    gradient, (maps, labels, probabilities) = jax.jit(jax.grad(scores, has_aux=True))(still, variables, images, labels)
    maps, gradient = as_map(maps, grid), as_map(gradient, grid)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    cam = jax.nn.relu((weights * maps).sum(axis=-1))
    return np.asarray(cam, np.float32), np.asarray(labels), np.asarray(probabilities, np.float32)


def has_map(model, images, layer):
    """Whether a layer has an output that is a map of the image; nothing is run."""
    try:
        _, _, shape = _moved(model, images, layer)
    except InputError:
        return False
    return _grid(model, layer, shape, images) is not None


def _moved(model, images, layer):
    """(static, variables, the output of `layer`, its shape alone) of the model with that output movable."""
    static, variables = split(replace(model, layer, Moved))
    call = functools.partial(apply, static, capture=f"{layer}.moved")
    _, state = jax.eval_shape(call, variables, images)
    return static, variables, state["captured"][f"{layer}.moved"]


def _grid(model, layer, output, images):
    if output.ndim == 4:
        return output.shape[1:3]
    place = grid_of(model, f"{layer}.", output.shape[1], images.shape[1:3]) if output.ndim == 3 else None
    return place and place[0]


def _at(tree, name):
    """The node of a tree of parameters at a dotted name; lists are numbered by ints."""
    for part in name.split("."):
        tree = tree[part] if part in tree else tree[int(part)]
    return tree


def _checked(labels, count, classes):
    labels = np.asarray(labels)
    if labels.shape != (count,) or not ((labels >= 0) & (labels < classes)).all():
        raise InputError(f"labels={labels.tolist()}: one class in 0..{classes - 1} for each of the {count} images")
    return jnp.asarray(labels)
