"""The configuration of a run: every field with its default, recipes over it, and what the command line overrides.

A recipe is a Python file with `get_config(arg="")`; it starts from `default_config()` and sets fields. Unknown fields
are refused with the closest match. `model`, `task` and the `options` of data, evaluation and optimiser are open: what
they may hold is decided by the model, the task, the source and the optimiser that are named, and checked there.
A recipe may import the files beside it, as a script may: what several share is said once.
"""

import ast
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import sys
import traceback

import ml_collections

from vision_jax.errors import InputError, unknown
from vision_jax.train.optim import NO_DECAY

_OPEN = ("model", "data.options", "eval.options", "optim.options", "task")


def default_config():
    """A locked `ConfigDict` of every field. Durations: "500 steps", "5 epochs", "1e6 examples", "10%" of the run."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the parameters, the data's order, augmentation and dropout
    c.total = "10 epochs"  # length of the run
    c.dtype = "float32"  # of the computation: "float32" or "bfloat16"; parameters are float32
    c.init_from = ""  # warm start: a run's workdir, or a safetensors file in the reference's names

    c.model = {"name": "vit_tiny_patch16_224"}  # a name of `list_models()` and any fields of its config
    c.task = {"name": "classification"}  # a name of `tasks` and its options: loss, teacher, token labelling, ...

    c.data = {
        "source": "digits",  # digits, folder, tfds, synthetic
        "split": "train",
        "options": {},  # of the source: root=..., dataset=..., ...
        "ops": ("decode", "normalize"),  # on the host, then on the device: vision_jax/data
        "batch_size": 128,  # of all devices and processes together
        "repeats": 1,  # how often in a row each example comes, augmented anew; an epoch is as long as before
        "workers": 0,  # processes that load and transform; 0: in the main process
        "on_error": "stop",  # an unreadable image stops the run, or "replace"s itself by another one
    }
    c.eval = {
        "split": "test",
        "options": {},  # of the source, over those of data.options
        "ops": ("decode", "normalize"),
        "batch_size": 256,
        "every": "1 epochs",
    }

    c.optim = {
        "name": "adamw",  # adamw, sgd, lamb, lion, muon
        "lr": 1e-3,
        "weight_decay": 0.05,
        "schedule": {
            "name": "cosine",  # cosine, linear, rsqrt, constant
            "warmup": "0 steps",
            "cooldown": "0 steps",
            "end": 0.0,
        },
        "clip": 1.0,  # global norm of the gradient; 0: off
        "accumulate": 1,  # microbatches a step
        "device_batch": 0,  # what a device takes at once, at most: accumulates more where it must; 0: as above
        "layer_decay": 1.0,  # factor of the learning rate from each group of layers to the one before it
        "no_decay": NO_DECAY,  # patterns of names without weight decay: biases, norms, tables
        "freeze": (),  # patterns of names that are not trained
        "moments_dtype": "float32",
        "gradient_dtype": "",  # in which gradients are made and summed over devices; "": that of the computation
        "offload": False,  # the optimiser's state lies in the host's memory between steps: for want of the device's
        "options": {},  # of the optimiser: b1=0.9, momentum=0.9, ...
    }
    c.ema = 0.0  # decay of the average of the parameters; 0: none. With one, it is what is evaluated

    c.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    c.shard_tokens = False  # between the layers of plain ViTs, tokens are split over the tensor axis: large images
    c.sharding_rules = ()  # (pattern, placement) pairs before the default ones: vision_jax/parallel/sharding.py

    c.checkpoint = {
        "every": "1 epochs",
        "keep_last": 2,
        "keep_best": "accuracy",  # a metric of the task's, or ""; with one, each step that is evaluated is saved too
    }
    c.log_every = 20  # steps
    c.profile_steps = ()  # (first, last) step of a profiler trace
    c.lock()
    for path in _OPEN:
        functools.reduce(lambda node, key: node[key], path.split("."), c).unlock()
    return c


def load_config(spec, overrides=()):
    """Reads a recipe and applies overrides.

    Args:
      spec: "configs/digits_vit.py" or "configs/digits_vit.py:arg".
      overrides: ("optim.lr", "3e-4") pairs; values are Python literals, or strings.

    Returns:
      The resolved, locked config.

    Raises:
      InputError: no such file, no `get_config` or one that fails, an unknown field, a value of another type.
    """
    path, _, arg = spec.partition(":")
    if not pathlib.Path(path).is_file():
        near = sorted(pathlib.Path(path).parent.glob("[!_]*.py")) if pathlib.Path(path).parent.is_dir() else []
        raise unknown("--config file", path, near) if near else InputError(f"--config={path}: there is no such file")
    module_spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        with _neighbours(pathlib.Path(path).resolve().parent):
            module_spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise InputError(f"--config={path} has no get_config(arg): it is not a recipe")
            recipe = module.get_config(arg) if arg else module.get_config()
    except InputError:
        raise
    except Exception as error:  # of an unknown field a locked ConfigDict says itself which is closest
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"--config={spec}{where}: {_said(error)}") from error
    if not isinstance(recipe, ml_collections.ConfigDict):
        raise InputError(f"--config={path}: get_config returned {recipe!r}: a ConfigDict is wanted")
    config = default_config()
    _merge(config, recipe, "")
    for field, value in overrides:
        override(config, field, value)
    return config


@contextlib.contextmanager
def _neighbours(directory):
    """While in force, the files of a directory can be imported; then they are forgotten: others may share names."""
    before = set(sys.modules)
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and pathlib.Path(file).parent == directory:
                del sys.modules[name]


def _said(error):
    """What an error says, on one line; a KeyError's own text is quoted."""
    text = str(error.args[0]) if isinstance(error, (AttributeError, KeyError)) and error.args else str(error)
    return " ".join((text if isinstance(error, AttributeError) else f"{type(error).__name__}: {text}").split())


def _merge(config, values, at):
    """Copies `values` over the defaults; whole groups may be given, fields left out keep their defaults."""
    for key, value in values.items():
        _set(config, key, value, f"{at}{key}")


def _set(node, key, value, name):
    """Sets the field `key` of a group; `name` is its whole name."""
    if key not in node and node.is_locked:
        elsewhere = [field for field in flat(default_config()) if field.endswith(f".{key}")]
        if elsewhere:
            raise InputError(f"unknown config field config.{name}: did you mean {' or '.join(elsewhere)}?")
        raise unknown(f"config field config.{name}:", key, node)
    old = node.get(key)
    if isinstance(old, ml_collections.ConfigDict):
        if not isinstance(value, (dict, ml_collections.ConfigDict)):
            raise InputError(f"config.{name}={value!r}: it is a group of fields ({', '.join(old)}); set one of these")
        return _merge(old, value, f"{name}.")
    if isinstance(old, tuple):
        value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if key in _DURATIONS and isinstance(value, int):
        value = f"{value} steps"
    try:
        if value is None and old is not None and node.is_locked:
            raise TypeError("ConfigDict itself takes None for anything")
        node[key] = value
    except TypeError as error:
        raise InputError(f"config.{name}={value!r}: type {type(old).__name__} is wanted, as {old!r}") from error


def override(config, field, text):
    """Sets `config.a.b` from the text of a command-line value."""
    *parents, leaf = field.split(".")
    node = config
    for part in parents:
        groups = [key for key in node if isinstance(node[key], ml_collections.ConfigDict)]
        if part not in groups:
            raise unknown(f"group of config fields in --config.{field}:", part, groups)
        node = node[part]
    _set(node, leaf, literal(text), field)


_DURATIONS = ("total", "every", "warmup", "cooldown")  # a bare number is steps


def literal(text):
    """The value of a command-line text: a Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def save_config(config, path):
    """Writes the resolved config as JSON; the file is whole at every moment."""
    new = pathlib.Path(path).with_name(pathlib.Path(path).name + ".new")
    new.write_text(config.to_json_best_effort(indent=2) + "\n")
    os.replace(new, path)


def read_config(path, overrides=()):
    """Reads what `save_config` wrote, and applies overrides."""
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: there is no such file; is --workdir the directory of a run?")
    try:
        values = _tuples(json.loads(pathlib.Path(path).read_text()))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    config = default_config()
    _merge(config, values, "")
    for field, value in overrides:
        override(config, field, value)
    return config


def _tuples(value):
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flat(config, prefix="config"):
    """{"config.optim.lr": 0.001, ...}: every field by its whole name."""
    out = {}
    for key, value in config.items():
        group = isinstance(value, ml_collections.ConfigDict)
        out |= flat(value, f"{prefix}.{key}") if group else {f"{prefix}.{key}": value}
    return out


def differences(old, new, prefix=""):
    """The fields in which two configs differ, as lines "optim.lr: 0.001 -> 0.0003"."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, ml_collections.ConfigDict) and isinstance(b, ml_collections.ConfigDict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return out
