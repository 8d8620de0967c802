"""Every golden against our model: values, gradients, statistics, initialisation, what layers were built with."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import golden
import vision_jax as vj
from golden_cases import CASES, filled
from vision_jax.layers.attention import ConvQKV
from vision_jax.layers.conv import Conv
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.stack import Stack
from vision_jax.weights.convert import dialect, entries

pytestmark = pytest.mark.heavy

FLOAT64, FLOAT32 = 1e-9, 2e-5


def in_reference_layout(case, static, params):
    """A tree like the parameters -> {the reference's name: array in its layout}."""
    out = {}
    model = vj.merge(static, static.shapes)
    for entry in entries(model, dialect(model, case.dialect)):
        if entry.path in params:
            array = params[entry.path] if entry.index is None else params[entry.path][entry.index]
            out |= dict(zip(entry.names, entry.to_reference(array), strict=True))
    return out


def flat(tree, prefix=()):
    """Nested dicts -> {path: leaf}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in flat(value, (*prefix, key)).items()}


@functools.cache
def prepared(key):
    """(static, variables, images) in float64, and a compiled evaluation (variables, images) -> (logits, maps)."""
    case, (arrays, record) = CASES[key], golden.load(key)
    with jax.enable_x64(True):
        static, variables = vj.split(filled(case, record, arrays, dtype=jnp.float64))
        variables = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)

    @jax.jit
    def evaluate(variables, images):
        maps, _ = vj.apply(static, variables, images, method="forward_features", pyramid=True)
        return vj.apply(static, variables, images)[0], maps

    return static, variables, golden.images(case.size).astype(np.float64), evaluate


@functools.cache
def evaluated(key):
    _, variables, images, evaluate = prepared(key)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, evaluate(variables, images))


def trained(key):
    """(logits, gradients, updated collections) of one train-mode pass with nothing random."""
    static, variables, images, _ = prepared(key)

    @jax.jit
    def gradient(variables, images):
        def loss(params):
            logits, state = vj.apply(static, {**variables, "params": params}, images, train=True, key=jax.random.key(0))
            logits = jnp.concatenate(logits, axis=1) if isinstance(logits, tuple) else logits  # two heads, one loss
            return (logits * golden.loss_weights(logits.shape)).sum(), (logits, state)

        return jax.grad(loss, has_aux=True)(variables["params"])

    with jax.enable_x64(True):
        gradients, (logits, state) = jax.tree.map(np.asarray, gradient(variables, images))
    return logits, gradients, state


@pytest.mark.parametrize("key", CASES)
def test_values(key):
    arrays, record = golden.load(key)
    logits, maps = evaluated(key)
    assert golden.error(golden.sample(logits), arrays["logits"]) < FLOAT64
    assert [list(m.shape) for m in maps] == record["map_shapes"]
    for i, ours in enumerate(maps):
        assert golden.error(golden.sample(ours), arrays[f"map{i}"]) < FLOAT64, f"map {i}"


@pytest.mark.parametrize("key", CASES)
def test_training(key):
    case, (arrays, record) = CASES[key], golden.load(key)
    static = prepared(key)[0]
    logits, gradients, state = trained(key)
    assert golden.error(golden.sample(logits), arrays["train_logits"]) < FLOAT64
    gradients = in_reference_layout(case, static, flat(gradients))
    assert sorted(gradients) == sorted(record["gradients"])
    scale = np.sqrt(np.mean(arrays["gradients"][:, 0] ** 2))
    for name, theirs in zip(record["gradients"], arrays["gradients"], strict=True):
        np.testing.assert_allclose(
            golden.measure(name, gradients[name]), theirs, rtol=1e-8, atol=1e-10 * scale, err_msg=name
        )
    statistics = in_reference_layout(case, static, flat(state["batch_stats"]))
    after = {name.removeprefix("after/"): value for name, value in arrays.items() if name.startswith("after/")}
    assert sorted(statistics) == sorted(after)
    for name, theirs in after.items():
        assert golden.error(statistics[name], theirs) < FLOAT64, name


@pytest.mark.parametrize("key", CASES)
def test_float32(key):
    case, (arrays, record) = CASES[key], golden.load(key)
    model = filled(case, record, arrays)
    logits = vj.jit(model)(golden.images(case.size))
    assert golden.rounding(golden.sample(logits), arrays["logits"]) < FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("key", CASES)
def test_every_leaf_is_seen(key):
    """The check is checked: a leaf or a third of a projection that changes must change a value."""
    static, variables, images, evaluate = prepared(key)
    logits, maps = evaluated(key)
    inert = getattr(type(vj.merge(static, static.shapes)), "inert", ())
    with jax.enable_x64(True):
        for path, leaf in flat(variables).items():
            for label, part in parts(path, leaf):
                changed = leaf.copy()
                changed[part] *= (
                    1 + 1e-6 * np.arange(1, 1 + changed[part].size).reshape(changed[part].shape) / changed[part].size
                )
                moved_logits, moved_maps = evaluate(replaced(variables, path, changed), images)
                seen = [golden.error(a, b) for a, b in zip(moved_maps, maps, strict=True)]
                seen = max(*seen, golden.error(moved_logits, logits))
                name = ".".join(map(str, path[1:])) + label
                if any(re.search(pattern, name) for pattern in inert):
                    assert seen < FLOAT64, f"{name} is declared inert, and is not"
                else:
                    assert seen > FLOAT64, name


def parts(path, leaf):
    """The parts of a leaf that are changed one at a time, with what they add to its name."""
    if path[-2] in ("qkv", "kv", "qkvo") and leaf.ndim > 2:
        axis = leaf.ndim - 3
        return [(f"[{i}]", np.s_[:, i] if axis else np.s_[i]) for i in range(leaf.shape[axis])]
    return [("", np.s_[...])]


def replaced(tree, path, value):
    if not path:
        return value
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}


@pytest.mark.parametrize("key", CASES)
def test_layers_are_built_as_the_reference_says(key):
    case, (_, record) = CASES[key], golden.load(key)
    model = vj.create_model(case.ours, abstract=True, **case.fields)
    said = {}
    for entry in entries(model, dialect(model, case.dialect)):
        name, module = entry.names[0].rpartition(".")[0], entry.owner
        if isinstance(module, Conv):
            said[name] = {"stride": list(module.stride), "dilation": list(module.dilation), "groups": module.groups}
            same = module.padding == "SAME"  # timm pads itself, but where the padding is symmetric at any size
            said[name]["padding"] = [0, 0] if same else [low for low, _ in module.padding]
        elif isinstance(module, (PointwiseConv, ConvQKV)):
            said[name] = {"stride": [1, 1], "dilation": [1, 1], "groups": 1, "padding": [0, 0]}
        elif hasattr(module, "epsilon"):
            said[name] = {key: getattr(module, key) for key in ("epsilon", "momentum") if hasattr(module, key)}
    assert said.keys() == {
        name for name in record["modules"] if any(n.startswith(name + ".") for n in record["shapes"])
    }
    for name, ours in said.items():
        theirs = record["modules"][name]
        assert ours == {key: theirs[key] for key in ours}, name


@pytest.mark.parametrize("key", CASES)
def test_drop_path_schedule(key):
    """Rates of the blocks in the reference's order; neighbours of one rate count once, as a block's branches do."""
    case, (_, record) = CASES[key], golden.load(key)
    model = vj.create_model(case.ours, abstract=True, **{**case.fields, "drop_path_rate": 0.3})
    order = {name: i for i, name in enumerate(record["shapes"])}
    places = {
        entry.name: min(order[name] for name in entry.names) for entry in entries(model, dialect(model, case.dialect))
    }
    rates = []
    for path, stack in nnx.iter_modules(model):
        for i, rate in enumerate(stack.rates if isinstance(stack, Stack) else ()):
            block = ".".join(map(str, (*path, i, "")))
            rates.append((min(place for name, place in places.items() if name.startswith(block)), rate))
    ours, theirs = (
        [r for r, _ in itertools.groupby(filter(None, side))]
        for side in (dict(sorted(rates)).values(), record["drop_path"])
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("key", CASES)
def test_initialisation(key):
    """Mean and standard deviation of every leaf of the full-size model, within five errors of two samples."""
    case, (_, record) = CASES[key], golden.load(key)
    model = vj.create_model(case.ours, **case.init)
    ours = vj.state_dict(model, case.dialect)
    for name, (mean, std) in record["init"].items():
        leaf, slack = ours[name].astype(np.float64), 7 / np.sqrt(ours[name].size)
        if leaf.size == 1:  # one number has no deviation, two draws have
            again = vj.state_dict(vj.create_model(case.ours, seed=1, **case.init), case.dialect)
            slack *= abs(leaf - again[name]).item()
        else:  # of a leaf of three either may come out small; a constant is exact
            slack *= max(std, leaf.std()) if std else 0
        # a head's learned frequencies are one draw, of their direction: one observation of a mean
        together = np.sqrt(leaf[:, 0, 0].size) if name == "rope.freqs" else 1
        mean_slack = slack * together + 1e-12
        assert abs(leaf.mean() - mean) <= mean_slack, f"{name}: mean {leaf.mean()}, the reference's {mean}"
        assert abs(leaf.std() - std) <= slack + 1e-12, f"{name}: deviation {leaf.std()}, the reference's {std}"
