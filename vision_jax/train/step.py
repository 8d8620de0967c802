"""One step of training and of evaluation, as pure functions over the state.

The state is a dict: "step", "data_position" (batches consumed), the model's collections ("params", "batch_stats", ...),
"opt_state", and "ema" where an average of the model is kept. Whatever is random is drawn from (seed, step).
"""

import jax
import jax.numpy as jnp
import optax

from vision_jax.errors import InputError
from vision_jax.mesh import BATCH, constrain, gradients_in, placing, splitting_tokens
from vision_jax.parallel import sharding
from vision_jax.train.ema import ema_update
from vision_jax.train.optim import frozen_mask

_OTHER = ("step", "data_position", "opt_state", "ema")


def collections(state):
    """The model's variables in a state."""
    return {name: tree for name, tree in state.items() if name not in _OTHER}


def evaluated(state):
    """The variables that are evaluated and shipped: the average where there is one."""
    return state.get("ema", collections(state))


def initial_state(variables, optimizer, average):
    """The state before the first step.

    Args:
      variables: the model's.
      optimizer: an `optax.GradientTransformation`.
      average: whether an average of the model is kept.
    """
    state = {"step": jnp.int32(0), "data_position": jnp.int32(0), **variables}
    state["opt_state"] = optimizer.init(variables["params"])
    if average:
        state["ema"] = jax.tree.map(jnp.copy, variables)
    return state


def make_train_step(
    static, task, optimizer, device_ops, mesh, rules, *, seed, accumulate=1, ema_decay=0.0, freeze=(),
    gradient_dtype=None, shard_tokens=False,
):  # fmt: skip
    """The function (state, batch, frozen) -> (state, metrics), to be jitted with a donated state.

    Args:
      static: the model.
      task: see `vision_jax.tasks`.
      optimizer: an `optax.GradientTransformation`.
      device_ops: (key, batch) -> batch: normalisation, mixing.
      mesh, rules: where parameters lie; they are gathered where they are used.
      seed: of everything random in the step.
      accumulate: microbatches; gradients are averaged over them, batch statistics pass from one to the next.
      ema_decay: decay of the average of the model, 0 for none.
      freeze: patterns of parameters that the optimiser leaves alone: their gradients are not computed.
      gradient_dtype: in which gradients are made and summed over devices, or None: that of the computation.
      shard_tokens: whether tokens are split over the tensor axis between the layers; see `mesh.splitting_tokens`.

    Metrics are the task's scalars, "grad_norm", and "finite", bool for each parameter in the tree's order:
    of its gradient and its new value. Where the batch says "replaced" or "stop" of its examples, so do they.
    """

    def loss_of(params, others, frozen, batch, key):
        params = without_gradient(freeze, params)

        def place(name, layer):
            return sharding.gather(layer, mesh, rules, prefix=name)

        with placing(place), gradients_in(gradient_dtype), splitting_tokens(shard_tokens) as split:
            variables = {"params": sharding.gather(params, mesh, rules), **others}
            out = task.train_loss(static, variables, frozen, batch, key)
        if split == []:
            raise InputError(f"config.shard_tokens=True: {static.name} has no blocks of tokens [B, N, C], as ViTs have")
        return out

    def gradients(params, others, frozen, batch, key):
        (_, (others, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, others, frozen, batch, key)
        return sharding.constrain_tree(grads, mesh, rules), others, metrics

    def accumulated(params, others, frozen, batch, key):
        # microbatch i takes examples i, i + accumulate, ...: each device keeps its own
        batch = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        batch = jax.tree.map(lambda x: constrain(x, None, BATCH), batch)
        zeros = sharding.constrain_tree(jax.tree.map(jnp.zeros_like, params), mesh, rules)

        def body(carry, xs):
            total, others = carry
            grads, others, metrics = gradients(params, others, frozen, *xs)
            return (jax.tree.map(jnp.add, total, grads), others), metrics

        (total, others), metrics = jax.lax.scan(body, (zeros, others), (batch, jax.random.split(key, accumulate)))
        return jax.tree.map(lambda g: g / accumulate, total), others, jax.tree.map(jnp.mean, metrics)

    def both_finite(grad, param):  # a step can also be too long for a finite gradient
        return jnp.isfinite(grad).all() & jnp.isfinite(param).all()

    def step(state, batch, frozen):
        variables = collections(state)
        params, others = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        mix_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state["step"]))
        batch = device_ops(mix_key, batch)
        compute = gradients if accumulate == 1 else accumulated
        grads, others, metrics = compute(params, others, frozen, batch, model_key)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        variables = {"params": optax.apply_updates(params, updates), **others}
        new = {name: state[name] + 1 for name in ("step", "data_position")} | {**variables, "opt_state": opt_state}
        if ema_decay:
            new["ema"] = ema_update(state["ema"], variables, state["step"], ema_decay, warmup=True)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "finite": jnp.stack(jax.tree.leaves(jax.tree.map(both_finite, grads, variables["params"]))),
        }
        if "replaced" in batch:
            metrics["images_replaced"] = batch["replaced"].sum()
        if "stop" in batch:
            metrics["stop"] = batch["stop"].any()
        return new, metrics

    return step


def without_gradient(freeze, params):
    """The parameters, those that the patterns freeze as constants."""
    frozen = frozen_mask(freeze, params)
    return jax.tree.map(lambda kept, param: jax.lax.stop_gradient(param) if kept else param, frozen, params)


def make_eval_step(static, task, device_ops, mesh, rules):
    """The function (variables, batch) -> sums, to be jitted."""

    def step(variables, batch):
        with placing(lambda name, layer: sharding.gather(layer, mesh, rules, prefix=name)):
            variables = {**variables, "params": sharding.gather(variables["params"], mesh, rules)}
            return task.evaluate(static, variables, device_ops(None, batch))

    return step


def make_predict_step(static, task, device_ops):
    """The function (variables, images [B, H, W, C] uint8) -> probabilities, to be jitted."""

    def step(variables, images):
        return task.predict(static, variables, device_ops(None, {"image": images})["image"])

    return step
