import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tiny
from vision_jax.functional import split
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm
from vision_jax.mesh import make_mesh
from vision_jax.names import names
from vision_jax.parallel import sharding
from vision_jax.parameters import Normal
from vision_jax.tasks.classification import Classification
from vision_jax.train import optim, step

B, K = 8, 3


class Net(nnx.Module):
    def __init__(self, stats=False, drop=0.0):
        self.drop = drop
        drawn = {"init": Normal(1.0), "bias_init": Normal(1.0)}
        self.fc1, self.fc2 = Linear(6, 5, **drawn), Linear(5, K, **drawn)
        self.bn = BatchNorm(5) if stats else None

    def __call__(self, x, train=None):
        x = self.fc1(x.reshape(len(x), -1))
        x = self.bn(x, train) if self.bn else x
        return self.fc2(dropout(jnp.tanh(x), self.drop, train))


def _batch(seed=0):
    return {"image": tiny.normal(B, 1, 2, 3, seed=seed), "label": jnp.arange(B) % K}


def _nothing(key, batch):
    return batch


def _make(model, optimizer=None, device_ops=_nothing, average=False, **options):
    """The jitted step and the state before it."""
    static, variables = split(model)
    optimizer = optimizer or optax.sgd(0.5)
    task, mesh = Classification(tuple("abc")), make_mesh(data=1, devices=jax.devices()[:1])
    fn = step.make_train_step(static, task, optimizer, device_ops, mesh, sharding.RULES, seed=0, **options)
    return jax.jit(fn), step.initial_state(variables, optimizer, average)


def _named(state):
    return [names(path, leaf)[0] for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"])]


def test_a_step_is_gradient_descent():
    model, batch = Net(), _batch()
    run, state = _make(model)
    new, metrics = run(state, batch, {})
    task, (static, variables) = Classification(tuple("abc")), split(model)

    def loss(params):
        return task.train_loss(static, {"params": params, "batch_stats": {}}, {}, batch, jax.random.key(9))[0]

    value, grads = jax.value_and_grad(loss)(variables["params"])
    tiny.assert_close(new["params"], jax.tree.map(lambda p, g: p - 0.5 * g, variables["params"], grads), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
    assert metrics["finite"].all()
    assert metrics["finite"].shape == (len(jax.tree.leaves(grads)),)


def test_step_and_data_position_count_apart():
    run, state = _make(Net())
    assert (state["step"], state["data_position"]) == (0, 0)
    assert state["step"].dtype == state["data_position"].dtype == jnp.int32
    new, _ = run(state | {"data_position": jnp.int32(40)}, _batch(), {})
    assert (new["step"], new["data_position"]) == (1, 41)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), state)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing(accumulate):
    model, results = Net(), []
    for options in ({}, {"accumulate": accumulate}):
        run, state = _make(model, optax.sgd(0.1, momentum=0.9), **options)
        for seed in range(3):
            state, metrics = run(state, _batch(seed), {})
        results.append((state["params"], metrics))
    assert results[1][1]["finite"].shape == results[0][1]["finite"].shape
    for _, metrics in results:
        metrics.pop("finite")
    tiny.assert_close(results[1], results[0], rtol=1e-6)


def test_accumulation_passes_statistics_from_one_microbatch_to_the_next():
    model, batch = Net(stats=True), _batch()
    hidden = np.asarray(model.fc1(batch["image"].reshape(B, -1)), np.float64)
    run, state = _make(model, accumulate=2)
    mean, var = np.zeros(5), np.ones(5)
    for i in range(2):
        part = hidden[i::2]  # examples i, i + 2, ...: what one device holds stays on it
        mean, var = 0.9 * mean + 0.1 * part.mean(0), 0.9 * var + 0.1 * part.var(0, ddof=1)
    stats = run(state, batch, {})[0]["batch_stats"]["bn"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_microbatches_have_keys_of_their_own():
    batch = jax.tree.map(lambda a: jnp.repeat(a[:4], 2, axis=0), _batch())  # two equal microbatches
    run, state = _make(Net(drop=0.5), accumulate=2)
    once, _ = _make(Net(drop=0.5))
    halves = jax.tree.map(lambda a: a[::2], batch)
    assert run(state, batch, {})[1]["loss"] != once(state, halves, {})[1]["loss"]


def test_the_average_of_the_model():
    run, state = _make(Net(stats=True), average=True, ema_decay=0.5)
    tiny.assert_close(state["ema"], step.collections(state), rtol=0)
    expected = tiny.by_name(state["ema"])
    for i in range(12):
        state, _ = run(state, _batch(i), {})
        decay = min(0.5, (1 + i) / (10 + i))
        model = tiny.by_name(step.collections(state))
        expected = {name: decay * value + (1 - decay) * model[name] for name, value in expected.items()}
    tiny.assert_close(state["ema"], expected, rtol=1e-5)
    assert set(state["ema"]) == {"params", "batch_stats"}
    assert step.evaluated(state) is state["ema"]
    assert set(step.collections(state)) == {"params", "batch_stats"}


def test_without_an_average_the_model_is_evaluated():
    _, state = _make(Net())
    assert "ema" not in state
    assert set(step.evaluated(state)) == {"params", "batch_stats"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_flags_name_the_leaves_that_are_not_finite(accumulate):
    run, state = _make(Net(), accumulate=accumulate)
    state["params"]["fc1"]["kernel"] = state["params"]["fc1"]["kernel"].at[0].set(3e38)
    batch = _batch()
    batch["image"] = batch["image"].at[1, 0, 0, 0].set(jnp.inf)
    batch["image"] = batch["image"].at[1, 0, 0, 1:].set(0)
    _, metrics = run(state, batch, {})
    bad = {name for name, good in zip(_named(state), metrics["finite"], strict=True) if not good}
    assert bad == {"fc1.kernel"}  # inf * 0: tanh's gradient is 0 there, all else is finite
    assert np.isfinite(metrics["loss"])


def _recording(key, batch):
    return {**batch, "image": batch["image"] + jax.random.normal(key, batch["image"].shape)}


def test_what_is_random_depends_on_seed_and_step():
    def losses(state, device_ops, model, seed=0):
        static, _ = split(model)
        mesh = make_mesh(data=1, devices=jax.devices()[:1])
        args = static, Classification(tuple("abc")), optax.sgd(0.0), device_ops, mesh, sharding.RULES
        run = jax.jit(step.make_train_step(*args, seed=seed))
        out = []
        for _ in range(2):
            state, metrics = run(state, _batch(), {})
            out.append(float(metrics["loss"]))
        return out

    for device_ops, model in ((_recording, Net()), (_nothing, Net(drop=0.5))):
        state = step.initial_state(split(model)[1], optax.sgd(0.0), average=False)
        first, second = losses(state, device_ops, model)
        assert first != second
        assert losses(state, device_ops, model) == [first, second]
        assert losses(state | {"step": jnp.int32(1)}, device_ops, model)[0] == second  # a resume
        assert losses(state | {"data_position": jnp.int32(1)}, device_ops, model)[0] == first
        assert first not in losses(state, device_ops, model, seed=1)


def test_replaced_images_are_counted():
    run, state = _make(Net(), accumulate=2)
    _, metrics = run(state, _batch() | {"replaced": jnp.arange(B) < 3}, {})
    assert metrics["images_replaced"] == 3


def test_eval_and_predict_steps():
    static, variables = split(Net())
    task, mesh = Classification(tuple("abc")), make_mesh(data=1, devices=jax.devices()[:1])

    def halve(key, batch):
        assert key is None
        return {**batch, "image": batch["image"] / 2}

    batch = _batch() | {"mask": jnp.arange(B) < 5}
    sums = jax.jit(step.make_eval_step(static, task, halve, mesh, sharding.RULES))(variables, batch)
    half = batch | {"image": batch["image"] / 2}
    tiny.assert_close(sums, task.evaluate(static, variables, half), rtol=1e-6)
    got = jax.jit(step.make_predict_step(static, task, halve))(variables, batch["image"])
    np.testing.assert_allclose(got, task.predict(static, variables, half["image"]), rtol=1e-6)


@pytest.mark.heavy
def test_gradients_of_frozen_layers_are_not_computed():
    """A linear probe: all but the head frozen. Products of the forward pass and of the head's gradient remain."""
    model, batch = (
        tiny.vit(abstract=False, num_classes=K),
        {"image": tiny.normal(B, 8, 8, 3), "label": jnp.arange(B) % K},
    )
    freeze = (r"^(?!head)",)
    fns = [
        _make(
            model,
            optim.make_optimizer(dict(freeze=freeze), split(model)[1]["params"], schedule=lambda _: 0.1),
            freeze=f,
        )
        for f in ((), freeze)
    ]
    flops = [fn.lower(state, batch, {}).compile().cost_analysis()["flops"] for fn, state in fns]
    assert flops[1] < 0.5 * flops[0]
    (full, state), (probe, _) = fns
    expected, got = full(state, batch, {})[0], probe(state, batch, {})[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got["params"], expected["params"])
    assert abs(got["params"]["head"]["kernel"] - state["params"]["head"]["kernel"]).max() > 1e-3
