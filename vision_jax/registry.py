"""Names of models -> how to build them, and what is known of each."""

import dataclasses
import fnmatch
import functools
import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.errors import InputError, unknown
from vision_jax.functional import at
from vision_jax.parameters import abstract_parameters, draw_numpy

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is published of a model.

    Attributes:
      name: the registered name, timm's where timm has the model.
      model: the class; config: its configuration.
      params: number of parameters; gmacs: multiply-adds for one image, in 1e9.
      paper: arXiv id; reference: the implementation it is compared with; licence: of the published weights.
      tags: pretrained tag -> hub id; the first is the default.
      mean, std, crop_pct, interpolation: the preprocessing that the weights expect, for images in 0..1.
    """

    name: str
    model: type
    config: object
    params: int
    gmacs: float
    paper: str = ""
    reference: str = "timm"
    licence: str = ""
    tags: tuple = ()
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = "bicubic"


_REGISTRY = {}


def register(name, model, config, **facts):
    """Registers a model: see `ModelInfo` for the facts."""
    if name in _REGISTRY:
        raise ValueError(f"model {name!r} is registered twice")
    _REGISTRY[name] = ModelInfo(name, model, config, **facts)


@functools.cache  # not "if the registry is empty": one family imported alone fills it in part
def _all():
    package = importlib.import_module("vision_jax.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vision_jax.models.{module.name}")
    return _REGISTRY


def list_models(pattern="*"):
    """Names of the registered models that match a wildcard pattern, sorted."""
    return sorted(fnmatch.filter(_all(), pattern))


def model_info(name):
    """What is published of a model.

    Raises:
      InputError: no such model; with the closest name.
    """
    if name not in _all():
        raise unknown("model", name, _all())
    return _REGISTRY[name]


def create_model(name, *, abstract=False, seed=0, **fields):
    """A model by name.

    Args:
      name: a name of `list_models()`.
      abstract: shapes only, no arrays: milliseconds. Fill it with `load_weights` or `init`.
      seed: seed of the initial parameters.
      **fields: fields of the model's config to replace, as num_classes=10, img_size=448, depths=(1, 1, 2, 1).

    Returns:
      An `nnx.Module`; call it with images [B, H, W, C].

    Raises:
      InputError: unknown model or field, or values that do not fit together.
    """
    info = model_info(name)
    known = [field.name for field in dataclasses.fields(info.config)]
    for field in fields:
        if field not in known:
            raise unknown(f"config field of {name}", field, known)
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    config = dataclasses.replace(info.config, **fields)
    with abstract_parameters():
        model = info.model(config)
    return model if abstract else fill(model, seed)


def fill(model, seed=0):
    """Gives every abstract parameter of a model its initial value, in place; returns the model."""
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        leaf = variable.get_value()
        if isinstance(leaf, jax.ShapeDtypeStruct):
            keys = tuple(map(jax.tree_util.DictKey, path))
            value = draw_numpy(variable.get_metadata()["init"], keys, leaf, seed)
            at(model, path).set_value(jnp.array(value, leaf.dtype))
    return model


def layer_group(groups, name):
    """The group of a parameter's name: the first of the model's `layer_groups()`, (pattern, group), that matches."""
    return next(group for pattern, group in groups if re.search(pattern, name))


def check(condition, message):
    """Raises `InputError(message)` unless the condition holds: for what a config's fields must fulfil together."""
    if not condition:
        raise InputError(message)
