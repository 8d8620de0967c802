"""The XLA path against the definition, over shapes, options and gradients; its safety and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vision_jax.kernels import linear_attention
from vision_jax.kernels.linear_attention import reference

from vision_jax.errors import InputError

CAUSAL = jax.jit(functools.partial(linear_attention, causal=True))


def operands(rng, tokens=11, heads=2, key_heads=None, value_heads=None, head_dim=4, value_dim=3, batch=2, sign=False):
    """q, k, v as numpy arrays, positive features unless `sign`."""
    shapes = ((heads, head_dim), (key_heads or heads, head_dim), (value_heads or heads, value_dim))
    tokens = tokens if isinstance(tokens, tuple) else (tokens,)
    q, k, v = (rng.normal(size=(batch, *tokens, *shape)) for shape in shapes)
    return (q, k, v) if sign else (np.abs(q), np.abs(k), v)


def decays(rng, kind, q):
    """log_decay for queries [B, N, heads, head_dim], mostly mild, some strong."""
    shape = {"head": q.shape[2:3], "token": q.shape[:3], "channel": q.shape}.get(kind)
    return None if shape is None else -rng.exponential(size=shape) * rng.choice([0.01, 1.0, 10.0], size=shape)


def states(rng, q, v, normalizer):
    sums = rng.normal(size=(q.shape[0], *q.shape[-2:], v.shape[-1]))
    return sums if normalizer is None else (sums, np.abs(rng.normal(size=sums.shape[:-1])))


def compare(q, k, v, chunk_size=None, **options):
    """Output and state in float64 against the definition."""
    arrays = {name: value for name, value in options.items() if not fixed(value)}
    rest = {name: value for name, value in options.items() if fixed(value)}
    attend = functools.partial(linear_attention, **rest, chunk_size=chunk_size, return_state=True)
    with jax.enable_x64(True):
        got = jax.jit(attend)(*jax.tree.map(jnp.asarray, (q, k, v)), **jax.tree.map(jnp.asarray, arrays))
        wanted = reference.linear_attention(q, k, v, **options)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.sqrt(np.mean(theirs**2)))


def fixed(option):
    """Whether an option is no array to be traced."""
    return option is None or isinstance(option, (bool, float, Constants))


class Constants(tuple):
    """Arrays that are not traced: angles."""


def angles(rng, spatial, head_dim):
    """Of each axis, which turns a random share of the pairs, some turns long."""
    cuts = np.sort(rng.integers(0, head_dim // 2 + 1, size=len(spatial) - 1))
    pairs = np.diff([0, *cuts, head_dim // 2])
    return Constants(rng.normal(scale=10, size=shape) for shape in zip(spatial, pairs, strict=True))


@st.composite
def cases(draw):
    key_heads, value_heads = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (4, 2), (3, 3), (8, 8)]))
    return dict(
        tokens=draw(st.sampled_from([1, 2, 3, 13, 16, 31, 37, 50])),
        heads=max(key_heads, value_heads) * (draw(st.integers(1, 2)) if max(key_heads, value_heads) < 8 else 1),
        key_heads=key_heads,
        value_heads=value_heads,
        head_dim=draw(st.sampled_from([1, 5, 16, 128])),
        value_dim=draw(st.sampled_from([1, 16, 64])),
        kind=draw(st.sampled_from([None, "head", "token", "channel"])),
        normalizer=draw(st.sampled_from([None, True, "pair"])),
        reverse=draw(st.booleans()),
        state=draw(st.booleans()),
        chunk_size=draw(st.sampled_from([None, 1, 4, 7, 16, 17, 32])),
    )


def drawn(case, rng):
    """(q, k, v) and the options of a case."""
    case = dict(case)
    kind, normalizer, state = (case.pop(name) for name in ("kind", "normalizer", "state"))
    reverse, causal = case.pop("reverse", False), case.pop("causal", True)
    q, k, v = operands(rng, **case, sign=normalizer is None)
    if normalizer == "pair":
        normalizer = tuple(np.abs(rng.normal(size=x.shape)) for x in (q, k))
    options = dict(causal=causal, reverse=reverse, normalizer=normalizer, log_decay=decays(rng, kind, q))
    if normalizer is not None:
        options["epsilon"] = 0.1
    if state:
        options["initial_state"] = states(rng, q, v, normalizer)
    return (q, k, v), options


@settings(max_examples=10, deadline=None)
@given(cases())
def test_causal_equals_the_definition(case):
    chunk_size = case.pop("chunk_size")
    arrays, options = drawn(case, np.random.default_rng(0))
    compare(*arrays, chunk_size, **options)


@pytest.mark.parametrize("kind", [None, "head", "token", "channel"])
@pytest.mark.parametrize(("tokens", "chunk_size"), [(37, 5), (67, 35), (130, None)])
def test_chunks_do_not_matter(kind, tokens, chunk_size):
    """Chunks that the tokens do not fill, several blocks of them, more tokens than a chunk of the default size."""
    arrays, options = drawn(dict(tokens=tokens, kind=kind, normalizer=True, state=True), np.random.default_rng(1))
    compare(*arrays, chunk_size, **options)


@pytest.mark.parametrize("value_dim", [64, 65])
def test_a_single_chunk_without_a_state(value_dim):
    """What XLA for CPU computes wrongly where it knows the state to be zeros."""
    case = dict(tokens=16, heads=4, head_dim=128, value_dim=value_dim, kind="channel", normalizer=None, state=False)
    arrays, options = drawn(case, np.random.default_rng(0))
    compare(*arrays, **options)


@settings(max_examples=5, deadline=None)
@given(cases(), st.sampled_from([(7,), (3, 5), (2, 3, 2)]))
def test_global_equals_the_definition(case, spatial):
    case = {name: value for name, value in case.items() if name not in ("chunk_size", "reverse")}
    arrays, options = drawn(case | dict(tokens=spatial, kind=None, causal=False), np.random.default_rng(2))
    compare(*arrays, **options)


@pytest.mark.parametrize("normalizer", [None, True, "pair"])
@pytest.mark.parametrize(("spatial", "causal"), [((7,), False), ((3, 5), False), ((2, 3, 2), False), ((13,), True)])
def test_rotated_equals_the_definition(spatial, causal, normalizer):
    """Along one to three axes, with fewer key heads; the normaliser is not rotated."""
    rng = np.random.default_rng(11)
    case = dict(tokens=spatial, heads=4, key_heads=2, head_dim=6, causal=causal, normalizer=normalizer)
    arrays, options = drawn(case | dict(kind="token" if causal else None, state=causal), rng)
    compare(*arrays, **options, rotary=angles(rng, spatial, 6))


def test_rotated_equals_the_paper():
    """Equation 19, one query at a time, of the angles of a map's rows and columns."""
    rng = np.random.default_rng(12)
    (q, k, v), turns = operands(rng, tokens=(2, 3), heads=1, head_dim=4, batch=1), rng.normal(size=2)
    rotary = tuple(np.arange(size)[:, None] * turn for size, turn in zip((2, 3), turns, strict=True))
    with jax.enable_x64(True):
        out = linear_attention(*map(jnp.asarray, (q, k, v)), normalizer=True, rotary=rotary)[0, ..., 0, :]

    def turned(x, place):
        angle = turns * place
        return np.concatenate([[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] @ pair for a, pair in
                               zip(angle, x.reshape(2, 2), strict=True)])  # fmt: skip

    places = list(np.ndindex(2, 3))
    for place in places:
        query = q[0][place][0]
        sums = sum(turned(query, place) @ turned(k[0][n][0], n) * v[0][n][0] for n in places)
        np.testing.assert_allclose(out[place], sums / sum(query @ k[0][n][0] for n in places), rtol=1e-12)


def scanned(q, k, v, *, log_decay=None, normalizer=None, epsilon=0.0, initial_state=None, reverse=False):
    """The recurrence, one token a step, for its derivatives."""
    few = {x.shape[2] for x in (k, v)}
    assert few == {q.shape[2]}
    qn, kn = (q, k) if normalizer in (None, True) else normalizer
    decay = jnp.zeros((1, 1, 1, 1)) if log_decay is None else log_decay
    decay = decay if decay.ndim == 4 else decay[..., None]
    decay = jnp.broadcast_to(decay, q.shape)
    sums, keys = jnp.zeros((*q[:, 0].shape, v.shape[-1])), jnp.zeros(q[:, 0].shape)
    if initial_state is not None:
        sums, keys = (initial_state, keys) if normalizer is None else initial_state

    def step(state, token):
        (sums, keys), (q, k, v, qn, kn, decay) = state, token
        sums = jnp.exp(decay)[..., None] * sums + k[..., None] * v[..., None, :]
        keys = jnp.exp(decay) * keys + kn
        out = (q[..., None] * sums).sum(-2)
        if normalizer is not None:
            out = out / ((qn * keys).sum(-1, keepdims=True) + epsilon)
        return (sums, keys), out

    tokens = [x.swapaxes(0, 1) for x in (q, k, v, qn, kn, decay)]
    (sums, keys), out = jax.lax.scan(step, (sums, keys), tokens, reverse=reverse)
    return out.swapaxes(0, 1), sums if normalizer is None else (sums, keys)


@pytest.mark.parametrize(
    ("kind", "normalizer", "reverse", "chunk_size"),
    [
        (None, "pair", False, 4), ("head", None, True, 4), ("head", True, False, 23), ("token", "pair", False, 7),
        ("token", None, False, 1), ("channel", None, False, 32), ("channel", True, True, 40),
        ("channel", "pair", False, 5),
    ],
)  # fmt: skip
def test_gradients_are_those_of_the_recurrence(kind, normalizer, reverse, chunk_size):
    """For every array: q, k, v, the decays, the normalizer, the state that enters; through output and state."""
    rng = np.random.default_rng(3)
    arrays, options = drawn(
        dict(tokens=45, kind=kind, normalizer=normalizer, reverse=reverse, state=True, batch=1), rng
    )
    arrays = dict(zip("qkv", arrays, strict=True)) | {n: x for n, x in options.items() if not fixed(x)}
    rest = {n: x for n, x in options.items() if fixed(x) and n != "causal"}

    def total(attend, arrays):
        leaves = jax.tree.leaves(attend(**arrays, **rest))
        return sum((leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))).sum() for leaf in leaves)

    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, arrays)
        ours = functools.partial(linear_attention, causal=True, chunk_size=chunk_size, return_state=True)
        got = jax.jit(jax.grad(functools.partial(total, ours)))(arrays)
        wanted = jax.jit(jax.grad(functools.partial(total, scanned)))(arrays)
        for path, gradient in jax.tree_util.tree_leaves_with_path(wanted):
            found = functools.reduce(lambda tree, key: tree[getattr(key, "key", getattr(key, "idx", None))], path, got)
            scale = float(jnp.abs(gradient).max())
            assert scale > 1e-6, path
            np.testing.assert_allclose(found, gradient, rtol=1e-9, atol=1e-9 * scale, err_msg=str(path))


def test_gradients_of_the_global_form():
    """Against differences of the definition, along one direction an array."""
    rng = np.random.default_rng(4)
    arrays, options = drawn(dict(tokens=(3, 4), kind=None, normalizer="pair", state=True, causal=False), rng)
    arrays = [*arrays, *options["normalizer"], *options["initial_state"]]
    weight = rng.normal(size=arrays[2].shape)

    def total(attend, arrays):
        pairs = dict(normalizer=tuple(arrays[3:5]), initial_state=tuple(arrays[5:]))
        out = attend(*arrays[:3], **pairs, epsilon=0.1)
        return ((out[0] if isinstance(out, tuple) else out) * weight).sum()

    with jax.enable_x64(True):
        gradients = jax.jit(jax.grad(functools.partial(total, linear_attention)))([jnp.asarray(x) for x in arrays])
        for i, gradient in enumerate(gradients):
            direction = rng.normal(size=arrays[i].shape)
            moved = [[x + sign * 1e-6 * direction if i == j else x for j, x in enumerate(arrays)] for sign in (1, -1)]
            slope = (total(reference.linear_attention, moved[0]) - total(reference.linear_attention, moved[1])) / 2e-6
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [None, "head", "token", "channel"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_state_carries_over(kind, reverse):
    """Two parts of the tokens, one after the other, give what the whole gives."""
    rng = np.random.default_rng(5)
    (q, k, v), options = drawn(dict(tokens=29, kind=kind, normalizer=True, state=False, reverse=reverse), rng)
    decay = options.pop("log_decay")
    with jax.enable_x64(True):
        attend = jax.jit(functools.partial(linear_attention, **options, return_state=True, chunk_size=6))
        whole, last = attend(*map(jnp.asarray, (q, k, v)), log_decay=decay)
        state, parts = None, []
        for part in [np.s_[:, :10], np.s_[:, 10:]][:: -1 if reverse else 1]:
            own = decay if kind in (None, "head") else decay[part]
            out, state = attend(*(jnp.asarray(x[part]) for x in (q, k, v)), log_decay=own, initial_state=state)
            parts.append(out)
        np.testing.assert_allclose(jnp.concatenate(parts[:: -1 if reverse else 1], axis=1), whole, rtol=1e-10)
        for ours, theirs in zip(state, last, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("kind", ["head", "token", "channel"])
def test_reverse_is_the_flipped(kind):
    rng = np.random.default_rng(6)
    q, k, v = map(jnp.asarray, operands(rng, tokens=19))
    decay = jnp.asarray(decays(rng, kind, q))
    flipped = decay if kind == "head" else decay[:, ::-1]
    turned = CAUSAL(q[:, ::-1], k[:, ::-1], v[:, ::-1], log_decay=flipped)[:, ::-1]
    ours = jax.jit(functools.partial(linear_attention, causal=True, reverse=True))(q, k, v, log_decay=decay)
    np.testing.assert_allclose(ours, turned, rtol=1e-6)


@pytest.mark.parametrize("kind", ["head", "token", "channel"])
def test_extreme_decays(kind):
    """Nothing kept, everything kept, and both in turn: right to float32's last digits, with finite gradients."""
    rng = np.random.default_rng(7)
    q, k, v = operands(rng, tokens=83, head_dim=8)
    shape = decays(rng, kind, q).shape

    @functools.partial(jax.jit, static_argnums=4)
    def attend(q, k, v, decay, gradient):
        out, state = linear_attention(q, k, v, log_decay=decay, causal=True, normalizer=True, return_state=True)
        return (out[:, 40:] ** 2).sum() if gradient else (out, state)

    for choices in ([0.0], [-50.0], [-np.inf], [0.0, -50.0, -1e-3, -1e4, -np.inf]):
        decay = rng.choice(choices, size=shape)
        wanted, (sums, _) = reference.linear_attention(q, k, v, log_decay=decay, causal=True, normalizer=True)
        arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v, decay)]
        got, (state, _) = attend(*arrays, False)
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(state, sums, rtol=2e-5, atol=2e-5)
        gradients = jax.jit(jax.grad(attend, (0, 1, 2, 3)), static_argnums=4)(*arrays, True)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_strong_decays_do_not_cancel():
    """A thousand nats of decay before two tokens leave what lies between them exact (differences of sums do not)."""
    rng = np.random.default_rng(8)
    q, k, v = operands(rng, tokens=96, head_dim=8)
    for kind in ("token", "channel"):
        decay = -rng.uniform(0, 0.1, size=decays(rng, kind, q).shape)
        decay[:, ::3] = -1000 - rng.uniform(size=decay[:, ::3].shape)
        decay = decay.astype(np.float32)
        wanted = reference.linear_attention(q, k, v, log_decay=decay, causal=True)[0]
        got = CAUSAL(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), log_decay=decay)
        np.testing.assert_allclose(got, wanted, rtol=5e-6, atol=1e-6)


def test_a_divisor_of_zero_gives_zero_and_passes_no_gradient():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in operands(np.random.default_rng(9)))
    q = q.at[:, 3].set(0)
    for causal in (False, True):

        def total(q, k, v, causal=causal):
            out = linear_attention(q, k, v, causal=causal, normalizer=True)
            return out.sum(), out

        gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        assert not out[:, 3].any()
        assert not gradients[0][:, 3].any()
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("causal", "kind"), [(False, None), (True, None), (True, "token"), (True, "channel")])
def test_bfloat16_keeps_wide_states(causal, kind):
    rng = np.random.default_rng(10)
    q, k, v = operands(rng, tokens=200, head_dim=16)
    decay, options = decays(rng, kind, q), dict(causal=causal, normalizer=True)
    exact = reference.linear_attention(q, k, v, log_decay=decay, **options)[0]
    narrow = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    attend = jax.jit(functools.partial(linear_attention, **options, return_state=True))
    out, state = attend(*narrow, log_decay=decay)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in state} == {np.dtype(np.float32)}
    assert np.sqrt(np.mean((np.asarray(out, np.float64) - exact) ** 2)) < 5e-3 * np.sqrt(np.mean(exact**2)) + 2e-3


@pytest.mark.parametrize("kind", [None, "token", "channel"])
def test_memory_grows_with_tokens(kind):
    """Forward and backward at 4,096 and 16,384 tokens, of the compiled program; 64 channels."""

    def temporary(tokens):
        q = jax.ShapeDtypeStruct((1, tokens, 2, 64), jnp.float32)
        shape = {None: (2,), "head": (2,), "token": q.shape[:3], "channel": q.shape}[kind]
        decay = jax.ShapeDtypeStruct(shape, jnp.float32)

        def loss(q, k, v, decay):
            return linear_attention(q, k, v, log_decay=decay if kind else None, causal=True).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(q, q, q, decay).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (q.size * 4)

    few, many = temporary(4096), temporary(16384)  # in arrays of q's size
    assert many <= few * 1.02
    assert many < 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(reverse=True), "reverse is for causal=True"),
        (dict(log_decay=np.zeros(2)), "log_decay is for causal=True"),
        (dict(chunk_size=4), "chunk_size is for causal=True"),
        (dict(causal=True, chunk_size=0), "chunk_size=0: an int of at least 1"),
        (dict(causal=True, log_decay=np.zeros((2, 11, 4))), r"log_decay of shape \(2, 11, 4\): one of \(2,\)"),
        (dict(causal=True, log_decay=np.array([-1.0, 0.1])), "log_decay up to 0.1: it must be at most 0"),
        (dict(causal=True, log_decay=jnp.array([-1.0, np.nan])), "at most 0"),
        (dict(normalizer=False), "normalizer=False: None, True, or a pair"),
        (dict(normalizer=(np.zeros((2, 11, 2, 4)), np.zeros((2, 11, 2, 3)))), "those of q and k"),
        (dict(epsilon=1e-6), "give a normalizer"),
        (dict(rotary=np.zeros((11, 2))), "a tuple of 1 arrays of angles, one an axis of the tokens, not ndarray"),
        (dict(rotary=(np.zeros((11, 1)),) * 2), "a tuple of 1 arrays of angles, .* not 2 of them"),
        (dict(rotary=(np.zeros((12, 2)),)), r"rotary of shapes \[\(12, 2\)\]: .* of sizes \(11,\)"),
        (dict(rotary=(np.zeros(11),)), r"rotary of shapes \[\(11,\)\]: \[size, pairs of channels\]"),
        (dict(rotary=(np.zeros((11, 3)),)), r"all axes together turn 4 / 2 pairs of channels"),
        (dict(implementation="cuda"), "unknown implementation of linear_attention 'cuda'"),
        (dict(initial_state=np.zeros((2, 2, 3, 4))), r"initial_state of shape \(2, 2, 3, 4\): \(2, 2, 4, 3\)"),
        (dict(normalizer=True, initial_state=np.zeros((2, 2, 4, 3))), "a pair"),
        (dict(normalizer=True, initial_state=(np.zeros((2, 2, 4, 3)), np.zeros((2, 2, 3)))), "a pair"),
    ],
)
def test_wrong_options_are_told(change, said):
    with pytest.raises(InputError, match=said):
        linear_attention(*map(jnp.asarray, operands(np.random.default_rng(0))), **change)


@pytest.mark.parametrize(
    ("shapes", "causal", "said"),
    [
        (((2, 3, 5, 2, 4),) * 3, True, "tokens need an order"),
        (((2, 5, 4),) * 3, False, r"\[B, \*spatial, heads, head_dim\] each"),
        (((2, 5, 2, 4), (2, 5, 2, 4), (2, 6, 2, 4)), False, "batch and tokens must be the same"),
        (((2, 5, 2, 4), (2, 5, 2, 3), (2, 5, 2, 4)), False, "q and k must have one head_dim"),
        (((2, 5, 3, 4), (2, 5, 2, 4), (2, 5, 3, 4)), True, "k has 2 heads, which do not divide the 3 of q"),
        (((2, 5, 3, 4), (2, 5, 3, 4), (2, 5, 2, 4)), True, "v has 2 heads"),
    ],
)
def test_wrong_shapes_are_told(shapes, causal, said):
    with pytest.raises(InputError, match=said):
        linear_attention(*map(jnp.zeros, shapes), causal=causal)


def test_a_traced_decay_is_not_looked_at():
    q, k, v = map(jnp.asarray, operands(np.random.default_rng(0)))
    jax.jit(lambda decay: linear_attention(q, k, v, log_decay=decay, causal=True)).lower(jnp.zeros(2))


def test_a_gradient_of_the_angles_is_refused():
    """Not zero without a word."""
    arrays = tuple(map(jnp.asarray, operands(np.random.default_rng(0))))

    def total(angle):
        return linear_attention(*arrays, rotary=(angle,)).sum()

    total(jnp.zeros((11, 2)))
    with pytest.raises(InputError, match="a constant, which has no gradient"):
        jax.grad(total)(jnp.zeros((11, 2)))
