"""The XLA path against the definition, over shapes, options and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vision_jax.kernels import window_attention
from vision_jax.kernels.window_attention import reference

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
    ],
)
def test_wrong_input_is_told(change, said):
    with pytest.raises(InputError, match=said):
        window_attention(*map(jnp.asarray, operands(np.random.default_rng(0))), **change)


def test_heads_that_do_not_fit():
    q, k, v = map(jnp.asarray, operands(np.random.default_rng(0), heads=3))
    with pytest.raises(InputError, match="do not divide"):
        window_attention(q, k[..., :2, :], v[..., :2, :], window_size=2)
