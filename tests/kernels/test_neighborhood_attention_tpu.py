"""The TPU kernel: against the XLA path in Pallas's interpreter, and through the compilers of three generations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, explain, neighborhood_attention
from vision_jax.kernels.neighborhood_attention import key_bands, query_tiles, reference

import tpu as pod

pytestmark = pytest.mark.heavy


def call(batch=1, size=(16, 32), heads=2, head_dim=32, kernel_size=3, bias=True, key_heads=None, **options):
    rng = np.random.default_rng(0)
    kernel = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * len(size)
    arrays = [rng.normal(size=(batch, *size, n, head_dim)) for n in (heads, *(key_heads or heads,) * 2)]
    arrays.append(rng.normal(size=(heads, *(2 * k - 1 for k in kernel))) if bias else None)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays), dict(options, kernel_size=kernel_size)


def attend(arrays, options, implementation):
    q, k, v, bias = arrays
    return neighborhood_attention(q, k, v, bias=bias, implementation=implementation, **options)


CALLS = {
    "tiles in both axes": call(size=(16, 48), kernel_size=(5, 3)),
    "several images a step": call(batch=4, size=(5, 6), heads=3),
    "no bias, causal": call(size=(8, 24), bias=False, is_causal=(True, False)),
    "strided, masked border": call(size=(9, 24), stride=(3, 2), border="mask"),
    "dilated": call(batch=2, size=(10, 12), dilation=(2, 4), heads=1),
    "a row": call(size=(48,), kernel_size=7, dilation=2, heads=4),
    "heads across tiles": call(size=(6, 7), heads=4, head_dim=48),
    "log-sum-exp, several tiles": call(size=(16, 24), heads=8, return_lse=True),
    "log-sum-exp, dilated, key heads that serve three": call(
        batch=2, size=(10, 12), dilation=2, heads=6, key_heads=2, return_lse=True
    ),
    "a row, log-sum-exp, one key head": call(size=(48,), kernel_size=7, heads=4, key_heads=1, return_lse=True),
    "zeros around, tiles in both axes": call(size=(16, 48), kernel_size=(5, 3), border="zero"),
    "zeros around, narrow, strided, dilated": call(
        batch=2, size=(10, 12), kernel_size=5, stride=(2, 3), dilation=(2, 1), border="zero", key_heads=1
    ),
    "zeros around, causal": call(size=(8, 32), is_causal=(True, False), border="zero", return_lse=True),
    "zeros around a row": call(size=(48,), kernel_size=9, heads=4, border="zero", bias=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_equals_the_xla_path(name):
    pod.assert_equals_xla(attend, *CALLS[name])


BANDED = {
    "bands in both axes": call(batch=2, size=(32, 48), kernel_size=(5, 3)),
    "log-sum-exp, strided, masked border": call(size=(24, 48), stride=(3, 2), border="mask", return_lse=True),
    "a row": call(size=(192,), kernel_size=7, is_causal=True, bias=False),
    "zeros around": call(size=(32, 48), border="zero"),
}


@pytest.mark.parametrize("name", BANDED)
def test_a_large_map_is_taken_in_bands(name, monkeypatch):
    """As it is where a band has room for 800 keys of 128 lanes, and no table for more than one pattern."""
    arrays, options = BANDED[name]
    monkeypatch.setattr(key_bands, "SUMS", 128 * (800 if arrays[0].ndim > 4 else 150))
    monkeypatch.setattr(query_tiles, "HELD", 0)
    pod.assert_equals_xla(attend, arrays, options)


def test_what_a_band_takes_does_not_grow_with_the_map():
    def sums(*size):
        options = dict(kernel_size=(31, 31), stride=(1, 1), dilation=(1, 1), is_causal=(False, False), border="shift")
        bands = query_tiles.QueryTiles.of((1, *size, 4, 32), options).bands
        return [len(cut.first) for cut in bands], 128 * np.prod([cut.keys for cut in bands])

    assert sums(64, 64) == ([1, 1, 1], 128 * 64 * 64)
    for size in ((256, 256), (1024, 1024)):
        bands, elements = sums(*size)
        assert min(bands[1:]) > 1
        assert elements <= key_bands.SUMS


def test_the_log_sum_exp_is_the_definition_s():
    arrays, options = CALLS["log-sum-exp, dilated, key heads that serve three"]
    pairs = dict(kernel_size=(3, 3), stride=(1, 1), dilation=(2, 2), is_causal=(False, False), border="shift")
    with dispatch.interpreted():
        found = attend(arrays, options, "tpu")
    q, k, v, bias = arrays
    for ours, exact in zip(found, reference.neighborhood_attention(q, k, v, bias=bias, **pairs), strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-5, rtol=1e-5)


def test_no_race_between_tiles():
    arrays, options = CALLS["strided, masked border"]
    with dispatch.interpreted(pltpu.InterpretParams(detect_races=True)):
        run = jax.jit(jax.grad(lambda arrays: (attend(arrays, options, "tpu") ** 2).sum()))
        gradients = run(arrays)
    expected = jax.grad(lambda arrays: (attend(arrays, options, "xla") ** 2).sum())(arrays)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def call_with_additional(dtype=np.float32, tokens=5, **changed):
    """(arrays, options) with additional keys, values and their bias behind the others."""
    arrays, options = call(batch=2, size=(8, 16), heads=4, key_heads=2, **changed)
    rng, shape = np.random.default_rng(1), (2, tokens, 2, 32)
    more = [rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=(4, tokens))]
    arrays = [*arrays, *(jnp.asarray(x, jnp.float32) for x in more)]
    return [a if i in (3, 6) else a.astype(dtype) for i, a in enumerate(arrays)], options


def attend_additional(arrays, options, implementation):
    *own, keys, values, bias = arrays
    more = dict(additional_keys=keys, additional_values=values, additional_bias=bias)
    return attend(own, options | more, implementation)


def test_additional_keys_equal_the_xla_path():
    pod.assert_equals_xla(attend_additional, *call_with_additional(dilation=2, return_lse=True))


def test_additional_keys_in_bfloat16_are_as_near_as_the_xla_path():
    arrays, options = call_with_additional(jnp.bfloat16)
    pairs = dict(kernel_size=(3, 3), stride=(1, 1), dilation=(1, 1), is_causal=(False, False), border="shift")
    q, k, v, bias, *more = (np.asarray(a, np.float64) for a in arrays)
    more = dict(zip(("additional_keys", "additional_values", "additional_bias"), more, strict=True))
    exact = reference.neighborhood_attention(q, k, v, bias=bias, **pairs, **more)[0]
    pod.assert_as_near(attend_additional, arrays, options, exact)


def test_bfloat16_is_as_near_as_the_xla_path():
    arrays, options = call(size=(8, 16), heads=4, kernel_size=5)
    arrays = [*(a.astype(jnp.bfloat16) for a in arrays[:3]), arrays[3]]
    given = [np.asarray(a, np.float64) for a in arrays]
    pairs = dict(kernel_size=(5, 5), stride=(1, 1), dilation=(1, 1), is_causal=(False, False), border="shift")
    exact = reference.neighborhood_attention(*given[:3], bias=given[3], scale=32**-0.5, **pairs)[0]
    pod.assert_as_near(attend, arrays, options, exact)


def test_a_mesh_splits_batch_and_heads():
    arrays, options = call(batch=4, size=(6, 8), heads=8, key_heads=4, dilation=2)
    pod.assert_a_mesh_changes_nothing(attend, arrays, options)


def gradient(q, k, v, bias, **options):
    def total(*a):
        out = neighborhood_attention(*a[:3], bias=a[3], **options)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(out))

    return jax.value_and_grad(total, (0, 1, 2, 3))(q, k, v, bias)


def shapes(batch, size, heads, kernel_size, dtype, key_heads=None):
    operands = [jax.ShapeDtypeStruct((batch, *size, n, 32), dtype) for n in (heads, *(key_heads or heads,) * 2)]
    return [*operands, jax.ShapeDtypeStruct((heads, *(2 * kernel_size - 1 for _ in size)), jnp.float32)]


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_it(generation):
    """A stage of NAT in bfloat16, forward and backward, chosen without being asked for."""
    step = functools.partial(gradient, kernel_size=7)
    compiled = pod.compile_for(pod.mesh(generation), step, *shapes(2, (28, 28), 4, 7, jnp.bfloat16))
    assert "neighborhood_attention_backward" in compiled.as_text()


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_the_log_sum_exp_zeros_around_and_few_key_heads(generation):
    step = functools.partial(gradient, kernel_size=7, border="zero", return_lse=True)
    compiled = pod.compile_for(pod.mesh(generation), step, *shapes(2, (28, 28), 8, 7, jnp.bfloat16, key_heads=2))
    assert "neighborhood_attention_backward" in compiled.as_text()


STAGES = {  # (size, heads, kernel_size, dilation): NAT-B's at 224 pixels, DiNAT's dilations, and larger maps
    "nat_b 1": ((56, 56), 4, 7, 1),
    "nat_b 2": ((28, 28), 8, 7, 1),
    "nat_b 3": ((14, 14), 16, 7, 1),
    "nat_b 4": ((7, 7), 32, 7, 1),
    "nat_mini 1": ((56, 56), 2, 7, 1),
    "dinat 1 of 8": ((56, 56), 4, 7, 8),
    "dinat 2 of 4": ((28, 28), 8, 7, 4),
    "dinat 3 of 2": ((14, 14), 16, 7, 2),
    "dinat at 384, 1 of 13": ((104, 104), 4, 7, 13),
    "64 x 64 of 7": ((64, 64), 4, 7, 1),
    "64 x 64 of 13": ((64, 64), 4, 13, 1),
    "128 x 128 of 7": ((128, 128), 4, 7, 1),
    "128 x 128 of 13": ((128, 128), 4, 13, 1),
    "a row of 4,096": ((4096,), 4, 13, 1),
    "a row of 65,536": ((65536,), 4, 13, 1),
    "256 x 256 of 7": ((256, 256), 4, 7, 1),
    "256 x 256 of 13": ((256, 256), 4, 13, 1),
    "256 x 256 of 31": ((256, 256), 4, 31, 1),
}
ZEROS = ["nat_b 1", "nat_b 3", "dinat 2 of 4", "64 x 64 of 13", "a row of 4,096"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "generation"), pod.in_turns(STAGES, ["nat_b 1", "128 x 128 of 13", "256 x 256 of 31"])
)
def test_stages_of_models_compile(stage, generation):
    size, heads, kernel_size, dilation = STAGES[stage]
    for dtype in (jnp.bfloat16, jnp.float32):
        options = dict(kernel_size=kernel_size, dilation=dilation, implementation="tpu")
        step = functools.partial(gradient, **options)
        pod.compile_for(pod.mesh(generation), step, *shapes(2, size, heads, kernel_size, dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(ZEROS))
def test_stages_with_zeros_around_compile(stage, generation):
    size, heads, kernel_size, dilation = STAGES[stage]
    options = dict(kernel_size=kernel_size, dilation=dilation, border="zero", implementation="tpu")
    for dtype in (jnp.bfloat16, jnp.float32):
        step = functools.partial(gradient, **options)
        pod.compile_for(pod.mesh(generation), step, *shapes(2, size, heads, kernel_size, dtype))


def test_a_large_map_compiles():
    step = functools.partial(gradient, kernel_size=7)
    compiled = pod.compile_for(pod.mesh("v5e"), step, *shapes(1, (256, 256), 4, 7, jnp.bfloat16))
    assert "neighborhood_attention_backward" in compiled.as_text()


def test_a_pod_needs_no_collective_on_a_map():
    """Its block with projections, forward and gradient, over fsdp and tensor: maps stay where they are."""
    attend = functools.partial(neighborhood_attention, kernel_size=7, dilation=2)
    text = pod.block_on_a_pod(lambda q, k, v, bias: attend(q, k, v, bias=bias), bias=(16, 13, 13))
    assert "neighborhood_attention_backward" in text
    assert not pod.moves_a_map(text)


def test_explain_says_why_xla_runs():
    def refused(size=(16, 16), **options):
        operand = jax.ShapeDtypeStruct((2, *size, 4, 32), jnp.bfloat16)
        options = {"kernel_size": 3} | options
        with jax.set_mesh(pod.mesh("v5e")):
            (choice,) = explain(functools.partial(neighborhood_attention, **options), operand, operand, operand)
        return choice.refused.get("tpu", "")

    assert refused() == ""
    assert refused(border="zero") == ""
    assert "dilation=3 does not divide the 16" in refused(dilation=3)
    assert refused(return_lse=True) == ""
    assert "too wide" in refused((200, 210))
    assert refused((256, 256), kernel_size=31) == ""
    assert "MiB, more than VMEM has" in refused((256, 256), kernel_size=127)
    assert "empty" in refused((53, 8))
