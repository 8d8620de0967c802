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

from vision_jax.config_fields import checked
from vision_jax.errors import InputError, unknown
from vision_jax.functional import at
from vision_jax.parameters import abstract_parameters, draw_numpy

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Published weights of a model and the preprocessing that they expect, for images in 0..1.

    Attributes:
      hub: id on the Hugging Face hub, "timm/NAME.TAG".
      num_classes: classes of the weights' head; 0 for none.
      img_size: side of the images that they were evaluated on, in pixels.
      mean, std: of normalisation, a channel.
      crop_pct: side of the centre crop as a fraction of the resized shorter side.
      interpolation: of resizing.
      crop_mode: "center"; "squash" resizes both sides to img_size / crop_pct, whatever the shape.
      licence: of these weights; register() fills in the model's.
      url: of a pickle, where they are published as nothing else; it is not opened here.
    """

    hub: str = ""
    num_classes: int = 1000
    img_size: int | tuple = 224
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    licence: str = ""
    url: str = ""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is published of a model.

    Attributes:
      name: the registered name, timm's where timm has the model.
      model: the class; config: its configuration.
      params: number of parameters.
      gmacs: multiply-adds for one image, in 1e9, as published: by the authors in the paper or beside the code, to one
        decimal, else in timm's tables (results/benchmark-infer-*.csv), to two. `vision_jax.tools.cost` counts them.
      paper: arXiv id; reference: the implementation it is compared with, "" for the paper alone.
      licence: of the published weights, unless a tag says otherwise.
      tags: {tag: Pretrained}, the default first; never empty ("" where no weights are published).
    """

    name: str
    model: type
    config: object
    params: int
    gmacs: float
    paper: str
    reference: str
    licence: str
    tags: dict

    @property
    def default_tag(self):
        """The tag that is meant where none is given."""
        return next(iter(self.tags))


_REGISTRY = {}


def register(name, model, config, *, params, gmacs, paper, licence, reference="timm", tags=("",), **preprocessing):
    """Registers a model.

    Args:
      name, model, config, params, gmacs, paper, licence, reference: see `ModelInfo`.
      tags: names of published weights, or {tag: fields of `Pretrained` in which they differ}; the default first.
      **preprocessing: fields of `Pretrained` that all tags share. The hub id is "timm/NAME.TAG" unless given, the image
        size and the number of classes are the config's.
    """
    if name in _REGISTRY:
        raise ValueError(f"model {name!r} is registered twice")
    shared = {"img_size": config.img_size, "num_classes": config.num_classes, "licence": licence, **preprocessing}
    own = tags if isinstance(tags, dict) else {tag: {} for tag in tags}
    entries = {tag: Pretrained(**{"hub": f"timm/{name}.{tag}" if tag else "", **shared, **f}) for tag, f in own.items()}
    _REGISTRY[name] = ModelInfo(name, model, config, params, gmacs, paper, reference, licence, entries)


@functools.cache  # not "if the registry is empty": one family imported alone fills it in part
def _all():
    package = importlib.import_module("vision_jax.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vision_jax.models.{module.name}")
    return _REGISTRY


def list_models(pattern="*", *, exclude_filters=(), family=None, pretrained=False, include_tags=None):
    """Names of the registered models, sorted.

    Args:
      pattern: a wildcard pattern, or several; a name must match one. NAME.TAG patterns are of names with tags.
      exclude_filters: patterns of names to leave out, one or several.
      family: only those of one family, the name of its file in `vision_jax/models`.
      pretrained: only those with published weights.
      include_tags: NAME.TAG for each of a model's published weights, in place of its name; None means if `pretrained`.

    Raises:
      InputError: an unknown family, or a pattern that is no string.
    """
    names = [name for name in _all() if not pretrained or any(tag.hub for tag in _all()[name].tags.values())]
    if family is not None:
        families = {name: family_of(name) for name in _all()}
        if family not in families.values():
            raise unknown("family", family, set(families.values()))
        names = [name for name in names if families[name] == family]
    if pretrained if include_tags is None else include_tags:
        names = [f"{name}.{tag}" for name in names for tag, weights in _all()[name].tags.items() if weights.hub]
    kept = _matching(names, "pattern", pattern) - _matching(names, "exclude_filters", exclude_filters)
    return sorted(kept)


def _matching(names, argument, patterns):
    """Those names that a pattern matches; one without a tag matches them with any."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list | tuple) or not all(isinstance(one, str) for one in patterns):
        raise InputError(f"list_models: {argument}={patterns!r}: a pattern such as 'vit*', or several, is wanted")
    return {name for one in patterns for part in (one, f"{one}.*") for name in fnmatch.filter(names, part)}


def family_of(name):
    """The family of a model: the file or directory in `vision_jax/models` that registers it."""
    return _all()[name].model.__module__.removeprefix("vision_jax.models.").partition(".")[0]


def model_info(name):
    """What is published of a model.

    Args:
      name: a name of `list_models()`, or NAME.TAG.

    Raises:
      InputError: no such model or tag; with the closest.
    """
    name, _, tag = name.partition(".")
    if name not in _all():
        raise unknown("model", name, _all())
    info = _all()[name]
    if tag and tag not in info.tags:
        raise unknown(f"tag of {name}:", tag, info.tags)
    return info


def create_model(name, *, abstract=False, seed=0, **fields):
    """A model by name, with initial parameters.

    Args:
      name: a name of `list_models()`, or NAME.TAG.
      abstract: shapes only, no arrays: tens of milliseconds. Fill it with `load_weights` or `init`.
      seed: seed of the initial parameters.
      **fields: fields of the model's config to replace, as num_classes=10, img_size=448, depths=(1, 1, 2, 1).

    Returns:
      An `nnx.Module`; call it with images [B, H, W, C].

    Raises:
      InputError: unknown model or field, or values that do not fit together.
    """
    info = model_info(name)
    config = dataclasses.replace(info.config, **checked(name, info.config, fields))
    with abstract_parameters():
        model = info.model(config)
    model.name = name  # as it was asked for: `preprocessing(model)` looks it up
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
