"""The XLA path against the definition, over options, shapes and tilings; gradients; memory; NATTEN as a witness."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vision_jax.kernels import neighborhood_aggregate, neighborhood_attention, neighborhood_scores, window_attention
from vision_jax.kernels.neighborhood_attention import plans, reference

from vision_jax.errors import InputError


def operands(rng, sizes, heads=2, key_heads=None, head_dim=3, value_dim=None, batch=2):
    key_heads, value_dim = key_heads or heads, value_dim or head_dim
    shapes = ((heads, head_dim), (key_heads, head_dim), (key_heads, value_dim))
    return [rng.normal(size=(batch, *sizes, *shape)) for shape in shapes]


def options(kernel_size, stride=None, dilation=None, is_causal=None, border="shift"):
    n = len(kernel_size)
    ones = (1,) * n
    return dict(
        kernel_size=kernel_size, stride=stride or ones, dilation=dilation or ones,
        is_causal=is_causal or (False,) * n, border=border,
    )  # fmt: skip


def more(rng, q, k, v, tokens, bias):
    """Additional keys and values, with a bias of some shape."""
    B, *sizes, heads, _ = q.shape
    shapes = {
        None: None,
        "heads": (heads, tokens),
        "queries": (1, *sizes, heads, tokens),
        "examples": (B, *(1 for _ in sizes), 1, tokens),
        "columns": (sizes[-1], 1, tokens),
    }
    return dict(
        additional_keys=rng.normal(size=(B, tokens, *k.shape[-2:])),
        additional_values=rng.normal(size=(B, tokens, *v.shape[-2:])),
        additional_bias=rng.normal(size=shapes[bias]) if bias else None,
    )


def cut_into(sizes, o, tile, chunk, groups):
    """A plan of small tiles, so that a small map has several, and several in a step."""
    axes = [
        plans.Axis(*axis, o["border"]).cut(tile)
        for axis in zip(sizes, o["kernel_size"], o["stride"], o["dilation"], o["is_causal"], strict=True)
    ]
    axes = [axis._replace(chunk=math.gcd(axis.tiles, chunk)) for axis in axes]
    plan = plans.Plan(tuple(axes), math.gcd(math.prod(o["dilation"]), groups))
    return mock.patch.object(plans, "make_plan", return_value=plan)


@st.composite
def cases(draw):
    n = draw(st.integers(1, 3))
    longest, room = {1: (9, 20), 2: (5, 6), 3: (3, 3)}[n]
    border = draw(st.sampled_from(["shift", "mask", "zero"]))
    axes = []
    for _ in range(n):
        kernel_size, dilation = 2 * draw(st.integers(0, longest // 2)) + 1, draw(st.integers(1, 3))
        least = kernel_size * dilation if border == "shift" else dilation
        stride, size = draw(st.integers(1, kernel_size)), least + draw(st.integers(0, room))
        axes.append((size, kernel_size, stride, dilation, draw(st.booleans())))
    sizes, *per_axis = zip(*axes, strict=True)
    key_heads = draw(st.integers(1, 2))
    return dict(
        sizes=sizes,
        options=options(*per_axis, border),
        heads=key_heads * draw(st.integers(1, 2)),
        key_heads=key_heads,
        bias=draw(st.booleans()),
        tokens=draw(st.sampled_from([0, 1, 7])),
        more_bias=draw(st.sampled_from([None, "heads", "queries", "examples", "columns"])),
        tile=(draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))),
    )


@settings(max_examples=12)
@given(cases())
def test_equals_the_definition(case):
    rng, o = np.random.default_rng(0), case["options"]
    q, k, v = operands(rng, case["sizes"], case["heads"], case["key_heads"], value_dim=5)
    kw = more(rng, q, k, v, case["tokens"], case["more_bias"]) if case["tokens"] else {}
    table = (case["heads"], *(2 * size - 1 for size in o["kernel_size"]))
    bias = rng.normal(size=table) if case["bias"] else None
    with jax.enable_x64(True), cut_into(case["sizes"], o, *case["tile"]):
        ours = jax.jit(lambda *x: neighborhood_attention(*x, **o, bias=bias, **kw, return_lse=True))(q, k, v)
        theirs = reference.neighborhood_attention(q, k, v, **o, bias=bias, **kw)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@settings(max_examples=6)
@given(cases())
def test_halves_equal_the_definition(case):
    rng, o = np.random.default_rng(0), case["options"]
    q, k, v = operands(rng, case["sizes"], case["heads"], case["key_heads"], value_dim=5)
    table = (case["heads"], *(2 * size - 1 for size in o["kernel_size"]))
    bias = rng.normal(size=table) if case["bias"] else None
    with jax.enable_x64(True):
        scores = jax.jit(lambda q, k: neighborhood_scores(q, k, **o, bias=bias, scale=0.7))(q, k)
        np.testing.assert_allclose(scores, reference.neighborhood_scores(q, k, **o, bias=bias, scale=0.7), atol=1e-12)
        weights = rng.normal(size=scores.shape)
        out = jax.jit(lambda w, v: neighborhood_aggregate(w, v, **o))(weights, v)
        np.testing.assert_allclose(out, reference.neighborhood_aggregate(weights, v, **o), atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "heads", "head_dim", "o"),
    [
        ((211,), 1, 128, options((31,), dilation=(2,))),
        ((131,), 3, 64, options((9,), is_causal=(True,))),
        ((19, 17), 8, 16, options((7, 5))),
        ((23, 20), 2, 32, options((3, 7), dilation=(5, 2))),
        ((18, 16), 1, 32, options((7, 7), border="mask")),
        ((10, 5, 7), 2, 16, options((3, 3, 5))),
    ],
)
def test_as_it_cuts_by_itself(sizes, heads, head_dim, o):
    rng = np.random.default_rng(1)
    q, k, v = operands(rng, sizes, heads, head_dim=head_dim, batch=1)
    bias = rng.normal(size=(heads, *(2 * size - 1 for size in o["kernel_size"])))
    theirs = reference.neighborhood_attention(q, k, v, **o, bias=bias)[0]
    call = jax.jit(lambda *x: neighborhood_attention(*x, **o, bias=jnp.asarray(bias, x[0].dtype)))
    with jax.enable_x64(True):
        np.testing.assert_allclose(call(q, k, v), theirs, atol=1e-12)
    narrow = call(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(narrow, theirs, atol=1e-5)


GRADIENTS = {
    "causal": ((11,), options((5,), (2,), (2,), (True,)), 3, "heads"),
    "shift": ((7, 9), options((3, 5), (2, 1), (2, 1)), 5, "queries"),
    "mask": ((5, 6), options((3, 5), (1, 2), (2, 3), (False, True), "mask"), 0, None),
    "zero": ((3, 4, 3), options((3, 1, 3), dilation=(1, 2, 1), border="zero"), 1, "examples"),
}


@pytest.mark.parametrize("key", GRADIENTS)
def test_gradients_are_those_of_the_definition(key):
    sizes, o, tokens, more_bias = GRADIENTS[key]
    rng = np.random.default_rng(1)
    q, k, v = operands(rng, sizes, 4, 2, value_dim=2)
    arrays = dict(q=q, k=k, v=v, bias=rng.normal(size=(4, *(2 * size - 1 for size in o["kernel_size"]))))
    arrays |= more(rng, q, k, v, tokens, more_bias) if tokens else {}
    weights = [rng.normal(size=(*q.shape[:-1], v.shape[-1])), rng.normal(size=q.shape[:-1])]

    def total(attention, arrays, **kw):
        return sum((x * w).sum() for x, w in zip(attention(**arrays, **o, **kw), weights, strict=True))

    with jax.enable_x64(True), cut_into(sizes, o, 2, 2, 2):
        ours = jax.jit(jax.grad(lambda a: total(neighborhood_attention, a, return_lse=True)))(arrays)
        wide = {name: np.asarray(gradient) for name, gradient in ours.items()}
    for name, gradient in wide.items():
        direction = rng.normal(size=gradient.shape)
        up, down = (
            total(reference.neighborhood_attention, {**arrays, name: arrays[name] + sign * 1e-6 * direction})
            for sign in (1, -1)
        )
        np.testing.assert_allclose((gradient * direction).sum(), (up - down) / 2e-6, rtol=1e-7, atol=1e-8, err_msg=name)
    narrow = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    with cut_into(sizes, o, 2, 2, 2):
        narrow = jax.jit(jax.grad(lambda a: total(neighborhood_attention, a, return_lse=True)))(narrow)
    for name, gradient in narrow.items():
        np.testing.assert_allclose(gradient, wide[name], atol=1e-4 * abs(wide[name]).max(), err_msg=name)


@pytest.mark.parametrize("border", ["shift", "mask", "zero"])
def test_gradients_of_the_halves_are_those_of_the_whole(border):
    rng = np.random.default_rng(2)
    o = options((3, 3), (1, 2), (2, 1), (False, True), border)
    arrays = [*operands(rng, (7, 5), 4, 2), rng.normal(size=(4, 5, 5))]
    weight = rng.normal(size=arrays[0].shape)

    def halves(q, k, v, bias):
        scores = neighborhood_scores(q, k, **o, bias=bias)
        return (neighborhood_aggregate(jax.nn.softmax(scores), v, **o) * weight).sum()

    def whole(q, k, v, bias):
        return (neighborhood_attention(q, k, v, **o, bias=bias) * weight).sum()

    with jax.enable_x64(True):
        for a, b in zip(*(jax.jit(jax.grad(f, (0, 1, 2, 3)))(*arrays) for f in (halves, whole)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_stride_of_the_kernel_size_is_window_attention():
    rng = np.random.default_rng(3)
    q, k, v = operands(rng, (6, 9))
    with jax.enable_x64(True):
        ours = jax.jit(lambda *x: neighborhood_attention(*x, kernel_size=3, stride=3))(q, k, v)
        np.testing.assert_allclose(ours, window_attention(*map(jnp.asarray, (q, k, v)), window_size=3), atol=1e-12)


def test_a_bias_beyond_the_range_of_exp_stays_finite():
    """Beyond the ends of dilation groups there are no queries: what lies there must not reach a gradient."""
    q, k, v = (jnp.asarray(x, jnp.float32) for x in operands(np.random.default_rng(4), (7, 9)))

    def total(q, k, v, bias):
        return neighborhood_attention(q, k, v, kernel_size=3, dilation=2, bias=bias).sum()

    gradients = jax.jit(jax.grad(total, (0, 1, 2, 3)))(q, k, v, jnp.full((2, 5, 5), 200.0))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert abs(gradients[2]).max() > 0.1


def test_bfloat16_keeps_a_wide_softmax():
    rng = np.random.default_rng(3)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in operands(rng, (9, 8), head_dim=16))
    kw = {name: jnp.asarray(x, jnp.bfloat16) for name, x in more(rng, q, k, v, 4, "heads").items()}
    o = options((3, 5))
    for kw_ in ({}, kw):
        exact, exact_lse = reference.neighborhood_attention(q, k, v, **o, **kw_)
        out, lse = jax.jit(lambda *x, kw=kw_: neighborhood_attention(*x, **o, **kw, return_lse=True))(q, k, v)
        assert out.dtype == jnp.bfloat16
        assert lse.dtype == jnp.float32
        np.testing.assert_allclose(lse, exact_lse, atol=1e-4)
        assert np.sqrt(np.mean((np.asarray(out, np.float64) - exact) ** 2)) < 5e-3
    total = jax.jit(lambda *x: neighborhood_attention(*x, **o).astype(jnp.float32).sum())
    gradients = jax.grad(total, (0, 1, 2))(q, k, v)
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("sizes", [(500,), (4096,), (56, 56), (130, 70), (24, 40, 32)])
@pytest.mark.parametrize("kernel_size", [3, 7, 23])
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_a_step_takes_no_more_than_the_map_has(sizes, kernel_size, dilation):
    if 2 * kernel_size * dilation > min(sizes):
        kernel_size = 3
    n = len(sizes)
    o = options((kernel_size,) * n, dilation=(dilation,) * n)
    axes, groups = plans.make_plan(sizes, *o.values(), 32)
    elements, one = 32 * math.prod(sizes), math.prod(axis.tile * axis.halo for axis in axes)
    assert one <= 2 * elements or all(axis.tile <= plans.TILE[n] for axis in axes)
    assert one * groups * math.prod(axis.chunk for axis in axes) <= max(elements, one)
    computed = math.prod(axis.dilation * axis.tiles * axis.tile * axis.halo for axis in axes)
    assert computed <= 2 * math.prod(sizes) * (kernel_size + plans.TILE[n]) ** n


@pytest.mark.heavy
def test_memory_grows_with_tokens_not_with_windows():
    """Beside arguments and results, forward and backward: the compiler's own count, in operands of float32."""

    def operands_taken(side, kernel_size, tokens=0):
        x = jax.ShapeDtypeStruct((1, side, side, 2, 32), jnp.float32)
        bias = jax.ShapeDtypeStruct((2, 2 * kernel_size - 1, 2 * kernel_size - 1), jnp.float32)

        more = [jax.ShapeDtypeStruct((1, tokens, 2, 32), jnp.float32)] * 2 if tokens else [None, None]

        def total(q, k, v, bias, keys, values):
            kw = dict(additional_keys=keys, additional_values=values)
            return neighborhood_attention(q, k, v, kernel_size=kernel_size, bias=bias, **kw).sum()

        gradient = jax.value_and_grad(total, range(6 if tokens else 4))
        compiled = jax.jit(gradient).lower(x, x, x, bias, *more).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * x.size)

    small, large, wide = operands_taken(64, 13), operands_taken(128, 13), operands_taken(128, 21)
    assert large < 1.05 * small
    assert wide < 1.2 * large  # a weight for each key of the window alone: 5.3 operands, then 13.8
    assert max(small, large, wide) < 14
    assert operands_taken(64, 3, tokens=512) < 1.2 * operands_taken(64, 3, tokens=64)  # 16 operands of weights, then 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(kernel_size=4), "kernel_size=4 of axis 0 is even.*take 3 or 5"),
        (dict(kernel_size=(3, 9)), "kernel_size . dilation = 9 is larger than the 7 positions of axis 1"),
        (dict(kernel_size=3, dilation=3), "= 9 is larger than the 7 positions of axis 1"),
        (dict(kernel_size=3, dilation=8, border="mask"), "dilation=8 is larger than the 7"),
        (dict(kernel_size=3, stride=4), "stride=4 of axis 0 is larger than kernel_size=3"),
        (dict(kernel_size=0), "kernel_size=0: an int of at least 1"),
        (dict(kernel_size=(3, 3, 3)), "a tuple of 2, one for each axis"),
        (dict(kernel_size=3, is_causal=1), "is_causal=1: True or False"),
        (dict(kernel_size=3, border="shifted"), "did you mean 'shift'"),
        (dict(kernel_size=3, implementation="cuda"), "implementation of neighborhood_attention 'cuda': "),
        (dict(kernel_size=3, bias=np.zeros((2, 3, 3))), r"bias of shape \(2, 3, 3\): \(2, 5, 5\)"),
        (dict(kernel_size=3, scale=np.ones(2)), "scale=.*a number"),
        (dict(kernel_size=3, additional_keys=np.zeros((2, 1, 2, 3))), "both or neither"),
        (dict(kernel_size=3, additional_bias=np.zeros((2, 1))), "there are none"),
        (
            dict(kernel_size=3, additional_keys=np.zeros((2, 1, 2, 3)), additional_values=np.zeros((2, 2, 2, 3))),
            r"additional_values of shapes \(2, 1, 2, 3\), \(2, 2, 2, 3\): \(2, 1, 2, 3\), \(2, 1, 2, 3\)",
        ),
        (
            dict(
                kernel_size=3, additional_keys=np.zeros((2, 1, 2, 3)), additional_values=np.zeros((2, 1, 2, 3)),
                additional_bias=np.zeros((9, 2, 1)),
            ),
            "additional_bias of shape",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_told(change, said):
    with pytest.raises(InputError, match=said):
        neighborhood_attention(*map(jnp.asarray, operands(np.random.default_rng(0), (9, 7))), **change)


def test_shapes_that_do_not_fit():
    q, k, v = map(jnp.asarray, operands(np.random.default_rng(0), (9, 7), heads=3))
    with pytest.raises(InputError, match="2 heads, which do not divide the 3 of q"):
        neighborhood_attention(q, k[..., :2, :], v[..., :2, :], kernel_size=3)
    with pytest.raises(InputError, match="do not fit q"):
        neighborhood_attention(q, k[:, :8], v[:, :8], kernel_size=3)
    with pytest.raises(InputError, match="one to three axes"):
        neighborhood_attention(q[:, 0, 0], k[:, 0, 0], v[:, 0, 0], kernel_size=3)
    with pytest.raises(InputError, match=r"weights of shape \(2, 9, 7, 3, 8\): \(2, 9, 7, 'heads', 9\)"):
        neighborhood_aggregate(jnp.zeros((2, 9, 7, 3, 8)), v, kernel_size=3)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("sizes", "o"),
    [
        ((37,), options((7,))),
        ((37,), options((7,), (4,), (3,))),
        ((41,), options((9,), (5,), (2,), (True,))),
        ((12, 17), options((3, 7))),
        ((13, 17), options((3, 5), (2, 4), (3, 2))),
        ((14, 11), options((5, 3), (3, 2), (2, 3), (True, False))),
        ((7, 8, 9), options((3, 5, 3), (1, 2, 3), (2, 1, 1), (False, False, True))),
    ],
)
def test_natten_agrees(sizes, o, reference):
    natten, torch = reference("natten"), reference("torch")
    q, k, v = operands(np.random.default_rng(5), sizes, 2, head_dim=16)
    attention = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}[len(sizes)]
    theirs = {name: x for name, x in o.items() if name != "border"}
    out = attention(*(torch.from_numpy(x).float() for x in (q, k, v)), **theirs, backend="flex-fna")
    ours = neighborhood_attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), **o)
    np.testing.assert_allclose(ours, out.numpy(), atol=5e-6)
