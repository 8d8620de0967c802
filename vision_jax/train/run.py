"""What a config describes, built: sources, operations, task, model, optimiser, mesh and the jitted steps.

Training, evaluation, prediction and ahead-of-time compilation all start here, so that they cannot differ.
"""

import copy
import dataclasses
import functools
import math
import operator
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import registry
from vision_jax.data import load_source, split_ops
from vision_jax.data.decode import ImageError
from vision_jax.data.pipeline import ON_ERROR, REPLACEMENTS
from vision_jax.errors import InputError, unknown
from vision_jax.functional import Static, apply, init, split
from vision_jax.mesh import BATCH, TENSOR, make_mesh
from vision_jax.parallel import sharding
from vision_jax.tasks import make_task
from vision_jax.train import optim, schedules, step
from vision_jax.train.teachers import with_teacher

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass
class Run:
    """Everything that does not change during a run. Shapes and shardings only; `initial_state` makes the arrays."""

    config: object
    mesh: jax.sharding.Mesh
    rules: tuple
    task: object
    model: object  # abstract
    static: Static
    eval_source: object
    eval_ops: tuple  # (host_ops, device_ops)
    train_source: object = None
    train_ops: tuple = ()
    train_shape: tuple = ()  # [H, W, C] of the images that the step takes
    total_steps: int = 0
    eval_every: int = 0
    save_every: int = 0
    schedule: object = None
    optimizer: object = None

    def steps(self, value, what):
        """A duration of the config in steps."""
        return schedules.duration(
            value, batch_size=self.config.data.batch_size, num_examples=len(self.train_source),
            total_steps=self.total_steps or None, what=what,
        )  # fmt: skip

    def resolved(self):
        """The config with every field of the model's config and the classes: enough to build the model without data."""
        config = copy.deepcopy(self.config)
        fields = dataclasses.asdict(self.model.config)
        config.model = {"name": config.model.name, **{key: value for key, value in fields.items() if key != "dtype"}}
        config.task.class_names = self.task.class_names
        return config

    def state_shapes(self):
        """The state's shapes, each with its sharding on the mesh."""
        variables = self.static.shapes
        shapes = jax.eval_shape(
            functools.partial(step.initial_state, optimizer=self.optimizer, average=bool(self.config.ema)), variables
        )
        shapes = self.with_shardings(shapes)
        if self.config.optim.offload:
            shapes["opt_state"] = jax.tree.map(_on_host, shapes["opt_state"])
        return shapes

    def with_shardings(self, shapes):
        """Shapes -> the same with the shardings that the rules give them."""
        places = sharding.shardings(shapes, self.mesh, self.rules)
        return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)

    def initial_state(self):
        """The state before the first step, drawn straight onto the mesh."""
        places = jax.tree.map(lambda s: s.sharding, self.state_shapes())

        def draw(key):
            return step.initial_state(init(self.static, key), self.optimizer, bool(self.config.ema))

        return jax.jit(draw, out_shardings=places)(jax.random.key(self.config.seed))

    def train_step(self):
        """The jitted (state, batch, frozen) -> (state, metrics)."""
        c, places = self.config, jax.tree.map(lambda s: s.sharding, self.state_shapes())
        fn = step.make_train_step(
            self.static, self.task, self.optimizer, self.train_ops[1], self.mesh, self.rules,
            seed=c.seed, accumulate=c.optim.accumulate, ema_decay=c.ema, freeze=c.optim.freeze,
            gradient_dtype=DTYPES.get(c.optim.gradient_dtype), shard_tokens=c.shard_tokens,
        )  # fmt: skip
        return jax.jit(fn, donate_argnums=0, out_shardings=(places, sharding.replicated(self.mesh)))

    def eval_step(self):
        """The jitted (variables, batch) -> sums."""
        return jax.jit(
            step.make_eval_step(self.static, self.task, self.eval_ops[1], self.mesh, self.rules),
            out_shardings=sharding.replicated(self.mesh),
        )


def build(config, *, training=False, evaluation=False, devices=None, open_source=load_source):
    """Builds what a config describes.

    Args:
      config: see `vision_jax.train.config`. Where no source is to be opened it must be a resolved one.
      training: whether the training source, the schedule and the optimiser are built.
      evaluation: whether the evaluation source is.
      devices: those of the mesh; all that are here by default.
      open_source: (name, split, **options) -> a source, where the data are not to be opened.

    Raises:
      InputError: whatever in the config cannot be, before anything is written.
    """
    _check(config)
    config = with_teacher(config) if training or not config.task.get("teacher") else config
    mesh = make_mesh(**config.mesh, devices=devices)
    rules = (*config.sharding_rules, *sharding.RULES)
    if config.shard_tokens and mesh.shape[TENSOR] == 1:
        raise InputError("config.shard_tokens=True splits tokens over the tensor axis: --config.mesh.tensor=2 or more")
    eval_host, eval_device = split_ops(config.eval.ops)
    train_source, train_ops, eval_source = None, (), None
    if training:
        config = _accumulating(config, mesh)
        sharding.check_batch(config.data.batch_size, mesh, config.optim.accumulate)
        train_ops = split_ops(config.data.ops)
        train_source = open_source(config.data.source, config.data.split, **config.data.options)
    if evaluation:
        sharding.check_batch(config.eval.batch_size, mesh, what="eval.batch_size")
        eval_source = open_source(
            config.data.source, config.eval.split, **{**config.data.options, **config.eval.options}
        )
    sources = [source for source in (train_source, eval_source) if source is not None]
    if len(sources) == 2 and tuple(train_source.class_names) != tuple(eval_source.class_names):
        raise InputError(_other_classes(train_source.class_names, eval_source.class_names))
    task = make_task(config.task, sources[0].class_names if sources else None)
    replace = config.data.on_error == "replace"
    shapes = [_image_shape(train_source, train_ops[0], REPLACEMENTS if replace else 1)] if training else []
    shapes += [_image_shape(eval_source, eval_host)] if evaluation else []
    if len(shapes) == 2 and shapes[0][2] != shapes[1][2]:
        raise InputError(
            f"data.ops give images of {shapes[0][2]} channels, eval.ops of {shapes[1][2]}: decode(channels=...) in both"
        )
    model = _model(config, task, shapes[-1] if shapes else None)
    static, _ = split(model)
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        _check_takes(static, shapes[0])
    run = Run(config, mesh, rules, task, model, static, eval_source, (eval_host, eval_device), train_source, train_ops)
    if training:
        run.train_shape = shapes[0]
        _add_training(run)
    return run


def _on_host(shape):
    """A shape with its sharding, in the host's memory; counters stay on the device."""
    return shape.update(sharding=shape.sharding.with_memory_kind(sharding.HOST)) if shape.ndim else shape


def _check(config):
    """What neither the parts' own checks nor the config's types tell before the run has begun."""
    for field in (
        "data.batch_size",
        "eval.batch_size",
        "data.repeats",
        "optim.accumulate",
        "checkpoint.keep_last",
        "log_every",
    ):
        if (value := operator.attrgetter(field)(config)) < 1:
            raise InputError(f"config.{field}={value}: at least 1 is wanted")
    for field in ("seed", "data.workers", "optim.device_batch"):
        if (value := operator.attrgetter(field)(config)) < 0:
            raise InputError(f"config.{field}={value} is negative")
    if config.optim.gradient_dtype not in ("", *DTYPES):
        raise unknown("config.optim.gradient_dtype", config.optim.gradient_dtype, ("", *DTYPES))
    if config.data.on_error not in ON_ERROR:
        raise unknown("data.on_error", config.data.on_error, ON_ERROR)
    if not 0 <= config.ema < 1:
        raise InputError(f"config.ema={config.ema}: a decay in 0..1 is wanted, as 0.9999; 0 for none")
    steps = config.profile_steps
    if steps and not (len(steps) == 2 and all(isinstance(s, int) for s in steps) and 1 <= steps[0] <= steps[1]):
        raise InputError(f"config.profile_steps={steps}: the first and the last step are wanted, as 10,15")


def _accumulating(config, mesh):
    """The config with `optim.device_batch` kept on this mesh: on fewer devices a batch takes more microbatches."""
    examples = config.data.batch_size // math.prod(mesh.shape[axis] for axis in BATCH)
    numbers = range(config.optim.accumulate, examples + 1) if config.optim.device_batch else ()
    for number in numbers:
        if examples % number == 0 and examples // number <= config.optim.device_batch:
            config = copy.deepcopy(config)
            config.optim.accumulate = number
            break
    return config


def _image_shape(source, host_ops, tries=1):
    """The shape [H, W, C] that examples have after the host operations, told by the first readable one."""
    for index in range(min(tries, len(source))):
        try:
            return np.shape(host_ops(source[index], np.random.default_rng(0))["image"])
        except ImageError as error:
            reason = ImageError(f"{source.name(index)}: {error}")
        except InputError as error:
            raise InputError(f"{source.name(index)}: {error}") from error
    raise reason


def _check_takes(static, shape):
    """Training images may be of another size than those evaluated, where the model takes both."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        jax.eval_shape(lambda variables, image: apply(static, variables, image)[0], static.shapes, image)
    except InputError as error:
        raise InputError(f"data.ops give training images of {shape[:2]}, eval.ops others: {error}") from error


def _model(config, task, image_shape):
    """The abstract model: the config's fields, and what data and task decide where it says nothing."""
    fields = {key: value for key, value in config.model.items() if key != "name"}
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    decided = {"dtype": DTYPES[config.dtype], **_asked(config.model.name, task)}
    if image_shape:
        decided |= {"in_chans": image_shape[2], "img_size": tuple(image_shape[:2])}
    for key, value in decided.items():
        given = fields.get(key, value)
        if given != value and not (key == "img_size" and tuple(np.broadcast_to(given, 2)) == value):
            what = f"config.model.{key}={given!r}, but the data and the task give {value!r}"
            raise InputError(f"{what}: leave it out, or change the task or the ops")
    _check_types(config.model.name, fields)
    return registry.create_model(config.model.name, abstract=True, **{**fields, **decided})


def _asked(name, task):
    """The fields that the task decides of a model, without those that it has not and that are off."""
    asked = task.model_fields()
    for field in [field for field in asked if not hasattr(registry.model_info(name).config, field)]:
        if asked.pop(field):
            able = [other for other in registry.list_models() if hasattr(registry.model_info(other).config, field)]
            raise InputError(f"the task needs a model with the field {field!r}, {name} has none: {', '.join(able)} do")
    return asked


def _check_types(name, fields):
    hints = typing.get_type_hints(registry.model_info(name).config)
    for key, value in fields.items():
        kinds = typing.get_args(hints[key]) if isinstance(hints.get(key), types.UnionType) else (hints.get(key),)
        if all(isinstance(kind, type) for kind in kinds):  # as against typing.Any, and names that create_model refuses
            more = {float: (int,), tuple: (list,)}
            if not isinstance(value, sum((more.get(kind, ()) for kind in kinds), kinds)):
                wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise InputError(f"config.model.{key}={value!r}: {wanted} is wanted")


def _other_classes(train, test):
    extra = [name for name in test if name not in set(train)] or [name for name in train if name not in set(test)]
    counts = f"{len(test)} against {len(train)}"
    return f"the evaluation split has other classes than the training split, as {extra[:3]}: {counts}"


def _at_least_one(run, duration, what):
    steps = run.steps(duration, what)
    if steps < 1:
        raise InputError(f"{what}={duration!r} is less than one step")
    return steps


def _add_training(run):
    c = run.config
    run.total_steps = _at_least_one(run, c.total, "config.total")
    run.eval_every = _at_least_one(run, c.eval.every, "config.eval.every")
    run.save_every = _at_least_one(run, c.checkpoint.every, "config.checkpoint.every")
    if c.checkpoint.keep_best and c.checkpoint.keep_best not in run.task.metric_names:
        raise unknown("config.checkpoint.keep_best", c.checkpoint.keep_best, run.task.metric_names)
    s = c.optim.schedule
    run.schedule = schedules.make_schedule(
        s.name, c.optim.lr, run.total_steps, end=s.end,
        warmup=run.steps(s.warmup, "optim.schedule.warmup"), cooldown=run.steps(s.cooldown, "optim.schedule.cooldown"),
    )  # fmt: skip
    groups = run.model.layer_groups()
    others = ("lr", "schedule", "accumulate", "device_batch", "gradient_dtype")  # not the optimiser's own
    fields = {key: value for key, value in c.optim.items() if key not in others}
    run.optimizer = optim.make_optimizer(
        fields, run.static.shapes["params"], schedule=run.schedule,
        layer_of=functools.partial(registry.layer_group, groups), num_layers=1 + max(group for _, group in groups),
    )  # fmt: skip
