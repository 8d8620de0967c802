import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import tiny
from vision_jax import names
from vision_jax.errors import InputError
from vision_jax.train.optim import make_optimizer

DEPTH, C = 3, 4
LR, DECAY, STEPS = 0.01, 0.1, 4


def _shapes():
    block = {
        "norm1": {"scale": (C,), "bias": (C,)},
        "attn": {"qkv": {"kernel": (C, 3, 2, C // 2), "bias": (3, 2, C // 2)}},
        "mlp": {"fc1": {"kernel": (C, 2 * C)}, "fc2": {"kernel": (2 * C, C)}},
        "ls1": {"gamma": (C,)},
    }
    return {
        "cls_token": (1, 1, C),
        "pos_embed": (1, 5, C),
        "patch_embed": {"proj": {"kernel": (2, 2, 3, C)}},
        "blocks": {str(i): block for i in range(DEPTH)},
        "head": {"kernel": (C, 10), "bias": (10,)},
    }


def _random(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype), _shapes(), is_leaf=lambda x: isinstance(x, tuple)
    )


def _stacked(tree):
    blocks = [tree["blocks"][str(i)] for i in range(DEPTH)]
    return tree | {"blocks": {names.STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}}


def _flat(tree):
    out = {}
    names.map_named(lambda name, leaf: out.setdefault(name[0], np.asarray(leaf)), tiny.unstack(tree))
    return out


def _layer_of(name):
    if match := re.match(r"blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    return DEPTH + 1 if name.startswith("head") else 0


def _run(config, *, scan=False, schedule=LR, steps=STEPS, **kwargs):
    """Parameters by name after some steps on random gradients, and the last state."""
    arrange = _stacked if scan else lambda tree: tree
    params = arrange(_random(0))
    tx = make_optimizer(config, jax.eval_shape(lambda: params), schedule=schedule, **kwargs)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(arrange(_random(1 + step)), state, params)
        params = optax.apply_updates(params, updates)
    return _flat(params), state


def _reference(rule, *, decay=lambda name: DECAY, lr=lambda name: LR):
    """The same by a literal transcription: rule(p, g, state, t, lr, decay) -> p."""
    params, moments = _flat(_random(0)), {}
    for step in range(STEPS):
        for name, g in _flat(_random(1 + step)).items():
            state = moments.setdefault(name, {"m": 0.0, "v": 0.0})
            params[name] = rule(params[name], g, state, step + 1, lr(name), decay(name))
    return params


def _close(got, expected, rtol=1e-11):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, atol=1e-13, err_msg=name)


def _adamw_rule(p, g, s, t, lr, decay, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.AdamW's documentation, line by line."""
    p = p - lr * decay * p
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    return p - lr * (s["m"] / (1 - b1**t)) / (np.sqrt(s["v"] / (1 - b2**t)) + eps)


def _sgd_rule(nesterov):
    """torch.optim.SGD's documentation, line by line, with dampening 0."""

    def rule(p, g, s, t, lr, decay, momentum=0.9):
        g = g + decay * p
        s["m"] = momentum * s["m"] + g if t > 1 else g
        return p - lr * (g + momentum * s["m"] if nesterov else s["m"])

    return rule


def _lion_rule(p, g, s, t, lr, decay, b1=0.9, b2=0.99):
    """Algorithm 2 of arXiv:2302.06675."""
    update = np.sign(b1 * s["m"] + (1 - b1) * g)
    s["m"] = b2 * s["m"] + (1 - b2) * g
    return p - lr * (update + decay * p)


def _lamb_rule(p, g, s, t, lr, decay, b1=0.9, b2=0.999, eps=1e-6):
    """Algorithm 2 of arXiv:1904.00962; what is not decayed is not adapted."""
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    update = (s["m"] / (1 - b1**t)) / (np.sqrt(s["v"] / (1 - b2**t)) + eps) + decay * p
    return p - lr * update * (np.linalg.norm(p) / np.linalg.norm(update) if decay else 1)


def _default_decay(name):
    """Written out, not as the library's regular expressions."""
    last = name.split(".")[-1]
    return 0.0 if last in ("scale", "bias", "gamma", "cls_token", "pos_embed") else DECAY


RULES = {
    "adamw": ({}, _adamw_rule),
    "sgd": ({}, _sgd_rule(False)),
    "sgd-nesterov": ({"nesterov": True}, _sgd_rule(True)),
    "lion": ({}, _lion_rule),
    "lamb": ({}, _lamb_rule),
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_optimizer_is_its_formula(x64, name, scan):
    options, rule = RULES[name]
    config = {"name": name.split("-")[0], "weight_decay": DECAY, "options": options}
    _close(_run(config, scan=scan)[0], _reference(rule, decay=_default_decay))


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay(x64, scan):
    config = ml_collections.ConfigDict({"weight_decay": DECAY, "layer_decay": 0.7, "no_decay": ()})
    got, _ = _run(config, scan=scan, layer_of=_layer_of, num_layers=DEPTH + 2)
    _close(got, _reference(_adamw_rule, lr=lambda name: LR * 0.7 ** (DEPTH + 1 - _layer_of(name))))
    assert _layer_of("head.kernel") == DEPTH + 1  # the head keeps the whole rate


@pytest.mark.parametrize("scan", [False, True])
def test_no_decay_may_differ_among_blocks(x64, scan):
    got, _ = _run({"weight_decay": DECAY, "no_decay": r"blocks\.1\."}, scan=scan)
    _close(got, _reference(_adamw_rule, decay=lambda name: 0.0 if name.startswith("blocks.1.") else DECAY))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_freeze(x64, scan, name):
    config = {"name": name, "weight_decay": DECAY, "freeze": (r"embed|token", r"^blocks\.[01]\."), "clip": 1.0}
    got, state = _run(config, scan=scan)
    expected = {n: p for n, p in _flat(_random(0)).items() if re.search(r"embed|token|^blocks\.[01]\.", n)}
    for n, p in expected.items():
        np.testing.assert_array_equal(got[n], p)
    moved = got.keys() - expected.keys()
    assert all((got[n] != _flat(_random(0))[n]).all() for n in moved)
    held = set()
    names.map_named(lambda n, leaf: held.update(n), state)
    assert any(n.endswith("mu.head.kernel") for n in held)
    assert not any(re.search("embed|token", n) for n in held)
    if not scan:
        assert not any(re.search(r"blocks\.[01]\.", n) for n in held)


def test_frozen_blocks_of_a_stack_do_not_count_in_the_norm(x64):
    config = {"name": "sgd", "freeze": (r"^blocks\.[01]\.",), "clip": 0.5}
    _close(_run(config, scan=True)[0], _run(config)[0])


def test_clip(x64):
    before, gradient = _flat(_random(0)), _flat(_random(1))
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    for clip, factor in ((0.5, 0.5 / norm), (1e6, 1.0), (0, 1.0), (None, 1.0)):
        got, _ = _run({"name": "sgd", "clip": clip}, steps=1)
        _close(got, {n: before[n] - LR * factor * gradient[n] for n in before})


def test_decay_follows_the_schedule(x64):
    rates = [0.0, 0.01, 0.02, 0.03]
    got, _ = _run({"weight_decay": DECAY, "no_decay": ()}, schedule=lambda step: jnp.asarray(rates)[step])

    def rule(p, g, s, t, lr, decay):
        return _adamw_rule(p, g, s, t, rates[t - 1], decay)

    _close(got, _reference(rule))


@pytest.mark.parametrize("scan", [False, True])
def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw(x64, scan):
    got, _ = _run({"name": "muon", "weight_decay": DECAY, "options": {"ns_steps": 5}}, scan=scan, steps=1)
    before, gradients = _flat(_random(0)), _flat(_random(1))
    adamw, _ = _run({"weight_decay": DECAY}, steps=1)

    def matrix(g):
        """Newton-Schulz of the Nesterov gradient (one step: in the gradient's direction), at AdamW's RMS of 0.2."""
        a, b, c = 3.4445, -4.7750, 2.0315
        x = g / np.linalg.norm(g)
        for _ in range(5):
            y = x @ x.T
            x = a * x + (b * y + c * y @ y) @ x
        return 0.2 * np.sqrt(max(g.shape)) * x

    for name, p in before.items():
        g = gradients[name]
        if re.search(r"fc\d\.kernel", name):
            direction = matrix(g)
        elif name.endswith("qkv.kernel"):
            direction = np.stack([matrix(g[:, i].reshape(C, C)).reshape(C, 2, C // 2) for i in range(3)], 1)
        else:
            np.testing.assert_allclose(got[name], adamw[name], rtol=1e-12, err_msg=name)
            continue
        np.testing.assert_allclose(got[name], p - LR * (direction + DECAY * p), rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_a_stack_of_one_block_trains_as_the_block(name):
    block = {"fc1": {"kernel": jnp.arange(6.0).reshape(2, 3) + 1}}
    results = []
    for params in ({"0": block}, {names.STACKED: jax.tree.map(lambda leaf: leaf[None], block)}):
        tx = make_optimizer({"name": name, "weight_decay": DECAY}, params, schedule=LR)
        results.append(tiny.unstack({"blocks": tx.update(params, tx.init(params), params)[0]}))
    np.testing.assert_allclose(*[r["blocks"]["0"]["fc1"]["kernel"] for r in results], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "lamb", "muon"])
def test_state_is_found_by_the_parameters_names_and_moments_have_their_dtype(name):
    params = jax.eval_shape(lambda: _stacked(_random(0, jnp.float32)))
    tx = make_optimizer({"name": name, "moments_dtype": "bfloat16"}, params, schedule=LR)
    found = {}
    names.map_named(lambda n, leaf: [found.setdefault(x, leaf) for x in n], jax.eval_shape(tx.init, params))
    for n in ("blocks.0.mlp.fc1.kernel", "blocks.2.mlp.fc1.kernel", "head.kernel"):
        copies = [x for x in found if re.search(rf"(^|\.){re.escape(n)}$", x)]
        first = [x for x in copies if ".nu." not in x]
        assert len(first) == 1
        assert found[first[0]].dtype == jnp.bfloat16
        assert all(found[x].dtype == jnp.float32 for x in set(copies) - set(first))
        assert len(copies) == {"adamw": 2, "lamb": 2, "muon": 2 if n == "head.kernel" else 1}.get(name, 1)


def test_updates_keep_the_parameters_dtype():
    params = _stacked(_random(0, jnp.float32))
    config = {"weight_decay": DECAY, "layer_decay": 0.9, "freeze": r"blocks\.1", "moments_dtype": "bfloat16"}
    tx = make_optimizer(config, params, schedule=LR, layer_of=_layer_of, num_layers=DEPTH + 2)
    updates, _ = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "adamv"}, "'adamw'"),
        ({"weight_decya": 0.1}, "'weight_decay'"),
        ({"options": {"beta1": 0.9}}, "option of adamw 'beta1'.*'b1'"),
        ({"name": "sgd", "options": {"b1": 0.9}}, "one of momentum, nesterov"),
        ({"options": 3}, "options=3"),
        ({"freeze": ("patch_embd",)}, "'patch_embd' matches no parameter.*patch_embed"),
        ({"freeze": ("^head", r"^blocks\.7\.mlp")}, r"blocks.*matches no parameter.*blocks\.\d\.mlp"),
        ({"freeze": ("(",)}, r"'\(' is no regular expression"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"clip": -1}, "clip=-1"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"layer_decay": 0.7}, "does not tell its layers"),
        ({"moments_dtype": "bfloat"}, "'bfloat16'"),
    ],
)
def test_says_what_is_wrong(config, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(config, _random(0, jnp.float32), schedule=LR)


def test_layer_groups_are_checked():
    with pytest.raises(InputError, match=r"layer_of\('head\.\w+'\)=4 must lie in 0..3"):
        make_optimizer({"layer_decay": 0.7}, _random(0, jnp.float32), schedule=LR, layer_of=_layer_of, num_layers=4)
