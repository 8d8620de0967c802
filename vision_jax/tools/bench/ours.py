"""This library's side of a benchmark: a model's compiled forward pass and training step."""

import time

import jax
import jax.numpy as jnp
import optax

from vision_jax.functional import apply, split
from vision_jax.layers.conv import pair
from vision_jax.parallel.chips import chip_of, roofline_fraction
from vision_jax.registry import create_model
from vision_jax.tasks.classification import Classification
from vision_jax.tools.cost import count_cost
from vision_jax.train.optim import make_optimizer

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.05  # the peers' too


class Ours:
    """A model of the registry with initial parameters, on the first device.

    Args:
      name: the model's.
      fields: fields of its config.

    Raises:
      InputError: no such model or field.
    """

    def __init__(self, name, fields):
        model = create_model(name, **fields)
        config = model.config
        self.image_shape = (*pair(config.img_size), config.in_chans)
        self.num_classes = config.num_classes
        self.macs = count_cost(model).macs
        self.static, self.variables = split(model)

    def forward(self, images):
        """The compiled forward pass, bound to images [B, H, W, C]."""
        images = jnp.asarray(images)

        def run(variables, images):
            return apply(self.static, variables, images)[0]

        return Program(run, (self.variables, images), 2 * self.macs * len(images))

    def train(self, images, labels):
        """A compiled training step that each call repeats on one batch: cross-entropy, gradient, AdamW's update.

        Args:
          images: [B, H, W, C].
          labels: [B].
        """
        task = Classification(tuple(map(str, range(self.num_classes))))
        params, others = self.variables["params"], {k: v for k, v in self.variables.items() if k != "params"}
        optimizer = make_optimizer({"weight_decay": WEIGHT_DECAY}, params, schedule=LEARNING_RATE)
        batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}

        def loss_of(params, others, batch, key):
            return task.train_loss(self.static, {"params": params, **others}, {}, batch, key)

        def step(state, batch):
            params, others, opt_state, number = state
            key = jax.random.fold_in(jax.random.key(0), number)
            (_, (others, _)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, others, batch, key)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), others, opt_state, number + 1

        state = jax.tree.map(jnp.copy, (params, others, optimizer.init(params), jnp.int32(0)))
        return Program(step, (state, batch), 6 * self.macs * len(images), carries=True)


class Program:
    """A compiled function with its arguments; a call runs it and waits.

    Args:
      run: the function.
      arguments: what it is called with.
      flops: floating-point operations of a call, the model's own.
      carries: whether its result is the next call's first argument, which is then donated.

    Attributes:
      compile_seconds: of lowering and compiling.
      memory_bytes: arguments, results and temporaries, as compiled.
    """

    def __init__(self, run, arguments, flops, carries=False):
        self.arguments, self.flops, self.carries = arguments, flops, carries
        start = time.perf_counter()
        self.compiled = jax.jit(run, donate_argnums=0 if carries else ()).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = self.compiled.memory_analysis()
        self.memory_bytes = memory and (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )

    def __call__(self):
        out = jax.block_until_ready(self.compiled(*self.arguments))
        if self.carries:
            self.arguments = (out, *self.arguments[1:])

    def figures(self, seconds):
        """What is known of it beside its times: {what: number}; `seconds` is the median of a call."""
        device = jax.devices()[0]
        found = {"compile_seconds": self.compile_seconds, "memory_bytes": self.memory_bytes, "flops": self.flops}
        if stats := device.memory_stats():
            found["device_peak_bytes"] = stats.get("peak_bytes_in_use")  # of all that this process has run
        if chip := chip_of(device.device_kind):
            moved = (self.compiled.cost_analysis() or {}).get("bytes accessed", 0)
            found["roofline"] = roofline_fraction(chip, seconds, self.flops, moved)
        return found
