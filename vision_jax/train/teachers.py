"""Teachers: which model they are, what their weights are, and how they see the student's images."""

import copy
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.data import split_ops
from vision_jax.data.device_ops import Normalize
from vision_jax.errors import InputError
from vision_jax.registry import model_info
from vision_jax.train.config import read_config
from vision_jax.train.warm_start import load_variables


def with_teacher(config):
    """The config, with the teacher's name and fields told where `task.teacher_weights` is a run's workdir.

    Raises:
      InputError: the run is another model's than `task.teacher` says.
    """
    taught = _run_of(config.task)
    if taught is None:
        return config
    name = taught.model.name
    if config.task.get("teacher", "") not in ("", name):
        given = f"task.teacher={config.task.teacher!r}, but task.teacher_weights={config.task.teacher_weights!r}"
        raise InputError(f"{given} is a run of {name!r}: leave task.teacher out")
    fields = {key: value for key, value in taught.model.items() if key != "name"}
    config = copy.deepcopy(config)
    config.task.teacher, config.task.teacher_fields = name, {**fields, **config.task.get("teacher_fields", {})}
    return config


def frozen_variables(run):
    """The arrays that the task's loss needs beside the model's: a teacher's.

    Raises:
      InputError: the teacher's weights do not fit, or it cannot see the student's images.
    """
    task = run.task
    if not task.frozen_shapes():
        return {}
    teacher, taught = task.make_teacher(), _run_of(run.config.task)
    channels = run.model.config.in_chans
    if teacher.config.in_chans != channels:
        given = f"task.teacher={task.teacher!r} takes {teacher.config.in_chans} channels, the images have {channels}"
        raise InputError(f"{given}: task.teacher_fields.in_chans, or decode(channels=...)")
    if taught is not None and tuple(taught.task.class_names) != tuple(task.class_names):
        known = f"{len(taught.task.class_names)} classes, these data {len(task.class_names)}"
        raise InputError(f"the run task.teacher_weights={task.teacher_weights!r} has {known}, or others")
    if task.token_labelling:
        image = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
        jax.eval_shape(teacher.dense_logits, teacher.shapes(), image)  # raises where there are none
    variables = load_variables(teacher.static, task.teacher_weights)
    mean, std = (np.float32(np.broadcast_to(v, channels)) for v in _normalization(run.train_ops[1].ops))
    wanted = _published(task.teacher) if taught is None else _normalization(split_ops(taught.eval.ops)[1].ops)
    if len(wanted[0]) not in (1, channels):  # published for colour; nothing is known of these weights
        wanted = mean, std
    scale, shift = std / wanted[1], (mean - wanted[0]) / wanted[1]
    return {"teacher": {"variables": variables, "scale": jnp.array(scale), "shift": jnp.array(shift)}}


def _run_of(task):
    """The config of the run whose workdir `teacher_weights` is; None where it is something else."""
    weights = task.get("teacher_weights", "")
    workdir = pathlib.Path(weights)
    return read_config(workdir / "config.json") if weights and (workdir / "checkpoints").is_dir() else None


def _normalization(device_ops):
    """(mean, std) of the images / 255, arrays of one value or one a channel."""
    for op in device_ops:
        if isinstance(op, Normalize):
            return np.float32(op.mean), np.float32(op.std)
    return np.zeros(1, np.float32), np.full(1, 1 / 255, np.float32)


def _published(name):
    info = model_info(name)
    weights = info.tags[name.partition(".")[2] or info.default_tag]
    return np.float32(weights.mean), np.float32(weights.std)
