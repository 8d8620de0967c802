"""The XLA path against the definition, over shapes, options and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vision_jax.kernels import window_attention
from vision_jax.kernels.window_attention import reference, xla

from vision_jax.errors import InputError


def operands(rng, size=(4, 6), heads=2, key_heads=None, head_dim=3, value_dim=None, batch=2):
    key_heads, value_dim = key_heads or heads, value_dim or head_dim
    shapes = ((heads, head_dim), (key_heads, head_dim), (key_heads, value_dim))
    return [rng.normal(size=(batch, *size, *shape)) for shape in shapes]


@st.composite
def cases(draw):
    window = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    blocks = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    span = [w * d for w, d in zip(window, dilation, strict=True)]
    key_heads = draw(st.integers(1, 2))
    return dict(
        size=tuple(b * s for b, s in zip(blocks, span, strict=True)),
        window_size=window,
        dilation=dilation,
        shift=tuple(draw(st.integers(0, s - 1)) if s > 1 else 0 for s in span),
        heads=key_heads * draw(st.integers(1, 2)),
        key_heads=key_heads,
        bias=draw(st.sampled_from([None, "shared", "windows"])),
        masked=draw(st.booleans()),
        scale=draw(st.sampled_from([None, 0.3, "heads"])),
    )


@pytest.mark.heavy
@settings(max_examples=15)
@given(cases())
def test_equals_the_definition(case):
    rng = np.random.default_rng(0)
    heads, tokens = case["heads"], int(np.prod(case["window_size"]))
    windows = int(np.prod(case["size"])) // tokens
    with jax.enable_x64(True):
        q, k, v = operands(rng, case["size"], heads, case["key_heads"], value_dim=5)
        bias = {None: None, "shared": (heads, tokens, tokens), "windows": (windows, heads, tokens, tokens)}[
            case["bias"]
        ]
        options = dict(
            window_size=case["window_size"],
            shift=case["shift"],
            dilation=case["dilation"],
            bias=None if bias is None else rng.normal(size=bias),
            key_mask=rng.random((2, *case["size"])) < 0.6 if case["masked"] else None,
            scale=rng.uniform(0.5, 2, heads) if case["scale"] == "heads" else case["scale"],
        )
        got = window_attention(*map(jnp.asarray, (q, k, v)), **options, return_lse=True)
        for ours, theirs in zip(got, reference.window_attention(q, k, v, **options), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_gradients_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        q, k, v = operands(rng)
        bias, scale = rng.normal(size=(2, 6, 6)), rng.uniform(0.5, 2, 2)
        mask = rng.random((2, 4, 6)) < 0.5
        weight = rng.normal(size=v.shape)
        options = dict(window_size=(2, 3), shift=(1, 1), key_mask=mask)

        def ours(arrays):
            return (window_attention(*arrays[:3], bias=arrays[3], scale=arrays[4], **options) * weight).sum()

        def theirs(arrays):
            options_ = dict(options, bias=arrays[3], scale=arrays[4])
            return (reference.window_attention(*arrays[:3], **options_)[0] * weight).sum()

        arrays = [q, k, v, bias, scale]
        gradients = jax.grad(ours)([jnp.asarray(a) for a in arrays])
        for i, gradient in enumerate(gradients):
            direction = rng.normal(size=arrays[i].shape)
            moved = [[a + sign * 1e-6 * direction if i == j else a for j, a in enumerate(arrays)] for sign in (1, -1)]
            slope = (theirs(moved[0]) - theirs(moved[1])) / 2e-6
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-7, atol=1e-9)


def random_options(rng, kind, size=(8, 6), heads=2, head_dim=4):
    """(q, k, v, options) of a call with one of the options beside the plain window."""
    q, k, v = operands(rng, size, heads, head_dim=head_dim, value_dim=3)
    options = dict(window_size=(4, 2), scale=rng.uniform(0.5, 2, heads))
    queries, keys, windows = 8, 8, size[0] * size[1] // 8
    if kind in ("halo", "halo of zeros", "strided"):
        options |= dict(halo=(2, 1), border="mask" if kind == "halo" else "zero")
        keys = 8 * 4
        options["key_mask"] = rng.random((2, *size)) < 0.8
    if kind == "strided":
        q, queries = q[:, ::2, ::2], 2
    if kind == "shared":
        q = q[:, :4, :2]
        options |= dict(shift=(1, 1))
    if kind == "routed":
        options["key_windows"] = rng.integers(0, windows, (2, windows, 3))
        options["key_mask"] = rng.random((2, *size)) < 0.8
        keys = 24
    options["bias"] = rng.normal(size=(windows, heads, queries, keys))
    if kind not in ("routed", "shared"):
        tall, wide = (2, 1) if kind == "strided" else (4, 2)
        options["query_bias"] = tuple(rng.normal(size=(n, m, head_dim)) for n, m in ((tall, 8), (wide, 4)))
        if kind == "terms":
            options["query_bias"] = tuple(rng.normal(size=(n, n, head_dim)) for n in (4, 2))
    return q, k, v, options


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["halo", "halo of zeros", "strided", "shared", "routed", "terms"])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_other_option_equals_the_definition(monkeypatch, kind, groups):
    q, k, v, options = random_options(np.random.default_rng(4), kind)
    weight = np.random.default_rng(5).normal(size=(2, *((4, 3) if kind == "strided" else (8, 6)), 2, 3))
    with jax.enable_x64(True):
        if groups > 1:  # scores of a third of the windows at a time
            monkeypatch.setattr(xla, "SCORES", 8 * 2 * 2 * 2 * options["bias"].shape[2] * options["bias"].shape[3])
        got = window_attention(*map(jnp.asarray, (q, k, v)), **options, return_lse=True)
        given = {"halo": (0, 0), "shift": (0, 0)} | options
        for ours, theirs in zip(got, reference.window_attention(q, k, v, **given), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)

        names = [name for name in ("bias", "query_bias", "scale") if name in options]

        def total(q, k, v, *arrays):
            changed = options | dict(zip(names, arrays, strict=True))
            return (window_attention(q, k, v, **changed) * weight).sum()

        arrays = jax.tree.map(jnp.asarray, [q, k, v, *(options[name] for name in names)])
        gradients = jax.grad(total, tuple(range(len(arrays))))(*arrays)
        direction = jax.tree.map(lambda a: np.random.default_rng(6).normal(size=a.shape), arrays)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), list(gradients), direction)))
        up, down = (total(*jax.tree.map(lambda a, d: a + s * 1e-6 * d, arrays, direction)) for s in (1, -1))
        np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-7)


@pytest.mark.heavy
def test_memory_grows_with_tokens(monkeypatch):
    """Halo and query terms in groups: twice the tokens cost at most twice the memory, scores of one group apart."""
    monkeypatch.setattr(xla, "SCORES", 2**22)

    def temporaries(size):
        shapes = [jax.ShapeDtypeStruct((1, size, size, 2, 16), jnp.float32)] * 3
        tables = [jax.ShapeDtypeStruct((8, 16, 16), jnp.float32)] * 2

        def total(q, k, v, *tables):
            return window_attention(q, k, v, window_size=8, halo=4, border="zero", query_bias=tables).sum()

        step = jax.jit(jax.grad(total, (0, 1, 2, 3, 4))).lower(*shapes, *tables).compile()
        return step.memory_analysis().temp_size_in_bytes

    one, four = temporaries(64), temporaries(128)
    scores = 128 * 128 * 2 * 256 * 4
    assert four < 4.2 * one
    assert four < 2.5 * scores  # all of them at once, with their probabilities and gradients, are more than 3


def test_a_query_without_keys_gives_zero_and_passes_no_gradient():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in operands(np.random.default_rng(2)))
    mask = jnp.zeros((2, 4, 6), bool)

    def total(q, k, v):
        return window_attention(q, k, v, window_size=2, key_mask=mask).sum()

    assert not window_attention(q, k, v, window_size=2, key_mask=mask).any()
    assert all(not gradient.any() for gradient in jax.grad(total, (0, 1, 2))(q, k, v))


def test_bfloat16_keeps_a_wide_softmax():
    q, k, v = operands(np.random.default_rng(3), head_dim=16)
    exact = reference.window_attention(q, k, v, window_size=(2, 2))[0]
    out, lse = window_attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), window_size=2, return_lse=True)
    assert out.dtype == jnp.bfloat16
    assert lse.dtype == jnp.float32
    assert np.sqrt(np.mean((np.asarray(out, np.float64) - exact) ** 2)) < 5e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(window_size=5), "pad the map to 5"),
        (dict(window_size=2, dilation=4), "multiple of window_size"),
        (dict(window_size=2, shift=2), "shift=2"),
        (dict(window_size=0), "window_size=0"),
        (dict(window_size=2, bias=np.zeros((2, 3, 3))), "bias of shape"),
        (dict(window_size=2, key_mask=np.ones((2, 4, 4), bool)), "key_mask of shape"),
        (dict(window_size=2, scale=np.ones(3)), "scale of shape"),
        (dict(window_size=2, border="zeros"), "did you mean 'zero'"),
        (dict(window_size=2, halo=1, shift=1), "goes without shift"),
        (dict(window_size=2, query_bias=(np.ones((2, 2, 3)), np.ones((2, 3, 3)))), "query_bias of shapes"),
        (dict(window_size=2, key_windows=np.zeros((2, 5, 1), int)), r"ints \[2, 6, n\]"),
        (dict(window_size=2, implementation="xl"), "did you mean 'xla'"),
        (dict(window_size=2, implementation="tpu"), "cannot run: this program is for a cpu"),
        (dict(window_size=2, halo=1, implementation="tpu"), "cannot run: halo: through XLA only"),
    ],
)
def test_wrong_input_is_told(change, said):
    with pytest.raises(InputError, match=said):
        window_attention(*map(jnp.asarray, operands(np.random.default_rng(0))), **change)


def test_heads_that_do_not_fit():
    q, k, v = map(jnp.asarray, operands(np.random.default_rng(0), heads=3))
    with pytest.raises(InputError, match="do not divide"):
        window_attention(q, k[..., :2, :], v[..., :2, :], window_size=2)
