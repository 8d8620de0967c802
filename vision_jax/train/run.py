"""What a config describes, built: sources, operations, task, model, optimiser, mesh and the jitted steps.

Training, evaluation, prediction and ahead-of-time compilation all start here, so that they cannot differ.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import registry
from vision_jax.data import load_source, split_ops
from vision_jax.errors import InputError, unknown
from vision_jax.functional import Static, init, split
from vision_jax.mesh import make_mesh
from vision_jax.parallel import sharding
from vision_jax.tasks import make_task
from vision_jax.train import optim, schedules, step

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
    total_steps: int = 0
    schedule: object = None
    optimizer: object = None

    def steps(self, value, what):
        """A duration of the config in steps; at least 1 for "every"."""
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
        return self.with_shardings(shapes)

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
            seed=c.seed, accumulate=c.optim.accumulate, ema_decay=c.ema,
        )  # fmt: skip
        return jax.jit(fn, donate_argnums=0, out_shardings=(places, None))

    def eval_step(self):
        """The jitted (variables, batch) -> sums."""
        return jax.jit(
            step.make_eval_step(self.static, self.task, self.eval_ops[1], self.mesh, self.rules),
            out_shardings=sharding.replicated(self.mesh),
        )


def build(config, *, training=False, evaluation=False):
    """Builds what a config describes.

    Args:
      config: see `vision_jax.train.config`. Where no source is to be opened it must be a resolved one.
      training: whether the training source, the schedule and the optimiser are built.
      evaluation: whether the evaluation source is.

    Raises:
      InputError: whatever in the config cannot be, before anything is written.
    """
    mesh = make_mesh(**config.mesh)
    rules = (*config.sharding_rules, *sharding.RULES)
    eval_host, eval_device = split_ops(config.eval.ops)
    train_source, train_ops, eval_source = None, (), None
    if training:
        sharding.check_batch(config.data.batch_size, mesh, config.optim.accumulate)
        train_ops = split_ops(config.data.ops)
        train_source = load_source(config.data.source, config.data.split, **config.data.options)
    if evaluation:
        sharding.check_batch(config.eval.batch_size, mesh, what="eval.batch_size")
        eval_source = load_source(
            config.data.source, config.eval.split, **{**config.data.options, **config.eval.options}
        )
    sources = [source for source in (train_source, eval_source) if source is not None]
    if len(sources) == 2 and tuple(train_source.class_names) != tuple(eval_source.class_names):
        raise InputError(_other_classes(train_source.class_names, eval_source.class_names))
    task = make_task(config.task, sources[0].class_names if sources else None)
    shapes = [_image_shape(train_source, train_ops[0])] if training else []
    shapes += [_image_shape(eval_source, eval_host)] if evaluation else []
    if len(shapes) == 2 and shapes[0][2] != shapes[1][2]:
        raise InputError(
            f"data.ops give images of {shapes[0][2]} channels, eval.ops of {shapes[1][2]}: decode(channels=...) in both"
        )
    model = _model(config, task, shapes[-1] if shapes else None)
    static, _ = split(model)
    run = Run(config, mesh, rules, task, model, static, eval_source, (eval_host, eval_device), train_source, train_ops)
    if training:
        _add_training(run)
    return run


def _image_shape(source, host_ops):
    """The shape [H, W, C] that examples have after the host operations."""
    return np.shape(host_ops(source[0], np.random.default_rng(0))["image"])


def _model(config, task, image_shape):
    """The abstract model: the config's fields, and what data and task decide where it says nothing."""
    fields = {key: value for key, value in config.model.items() if key != "name"}
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    decided = {"dtype": DTYPES[config.dtype], **task.model_fields()}
    if image_shape:
        decided |= {"in_chans": image_shape[2], "img_size": tuple(image_shape[:2])}
    for key, value in decided.items():
        given = fields.get(key, value)
        if given != value and not (key == "img_size" and tuple(np.broadcast_to(given, 2)) == value):
            raise InputError(
                f"config.model.{key}={given!r}, but the data and the task give {value!r}: leave it out, or change the ops"
            )
    return registry.create_model(config.model.name, abstract=True, **{**fields, **decided})


def _other_classes(train, test):
    extra = [name for name in test if name not in set(train)] or [name for name in train if name not in set(test)]
    return f"the evaluation split has other classes than the training split, as {extra[:3]}: {len(test)} against {len(train)}"


def _add_training(run):
    c = run.config
    run.total_steps = run.steps(c.total, "config.total")
    if run.total_steps < 1:
        raise InputError(f"config.total={c.total!r} is less than one step")
    s = c.optim.schedule
    run.schedule = schedules.make_schedule(
        s.name, c.optim.lr, run.total_steps, end=s.end,
        warmup=run.steps(s.warmup, "optim.schedule.warmup"), cooldown=run.steps(s.cooldown, "optim.schedule.cooldown"),
    )  # fmt: skip
    groups = run.model.layer_groups()
    fields = {key: value for key, value in c.optim.items() if key not in ("lr", "schedule", "accumulate")}
    run.optimizer = optim.make_optimizer(
        fields, run.static.shapes["params"], schedule=run.schedule,
        layer_of=functools.partial(registry.layer_group, groups), num_layers=1 + max(group for _, group in groups),
    )  # fmt: skip
