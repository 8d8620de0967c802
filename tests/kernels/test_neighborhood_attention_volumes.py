"""The TPU kernel on maps of three axes: against the XLA path and the definition, and through three compilers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import dispatch, explain, neighborhood_attention, tile_table
from vision_jax.kernels.neighborhood_attention import key_bands, query_tiles, reference

import tpu as pod

pytestmark = pytest.mark.heavy


def call(batch=1, size=(4, 3, 32), heads=1, head_dim=16, kernel_size=(3, 3, 3), bias=True, **options):
    """(arrays q, k, v, bias; options) of a call."""
    rng, key_heads = np.random.default_rng(0), options.pop("key_heads", heads)
    arrays = [rng.normal(size=(batch, *size, n, head_dim)) for n in (heads, key_heads, key_heads)]
    arrays.append(rng.normal(size=(heads, *(2 * k - 1 for k in kernel_size))) if bias else None)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays), dict(options, kernel_size=kernel_size)


def attend(arrays, options, implementation, tile=(2, 1, 16)):
    """Of a small map the rule would take all planes in one tile."""
    q, k, v, bias, *more = arrays
    if more:
        options = options | dict(additional_keys=more[0], additional_values=more[1])
    with tile_table.trying("neighborhood_attention.tpu", tile):
        return neighborhood_attention(q, k, v, bias=bias, implementation=implementation, **options)


CALLS = {
    "tiles in all axes, two heads": call(heads=2, kernel_size=(3, 3, 5)),
    "causal in time, log-sum-exp, heads of 64": call(
        head_dim=64, kernel_size=(3, 1, 3), is_causal=(True, False, False), bias=False, return_lse=True
    ),
    "strided, causal along rows and columns, masked border": call(
        stride=(2, 1, 3), is_causal=(False, True, True), border="mask"
    ),
    "zeros around, dilated, one key head": call(
        size=(4, 2, 32), dilation=(1, 1, 2), stride=(1, 2, 1), border="zero", heads=2, key_heads=1
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_equals_the_xla_path(name):
    pod.assert_equals_xla(attend, *CALLS[name])


def test_several_images_a_step_and_additional_keys():
    arrays, options = call(batch=4, size=(4, 2, 5), kernel_size=(1, 1, 3), dilation=(2, 1, 1), return_lse=True)
    more = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 3, 1, 16)), jnp.float32)
    pod.assert_equals_xla(functools.partial(attend, tile=(2, 2, 5)), [*arrays, *more], options)


def test_a_large_map_is_taken_in_bands_along_all_axes(monkeypatch):
    """As it is where a band has room for few keys, and no table for more than one pattern."""
    arrays, options = call(size=(4, 3, 48), border="zero")
    monkeypatch.setattr(key_bands, "SUMS", 0)
    monkeypatch.setattr(query_tiles, "HELD", 0)
    pairs = dict(kernel_size=(3,) * 3, stride=(1,) * 3, dilation=(1,) * 3, is_causal=(False,) * 3, border="zero")
    with tile_table.trying("neighborhood_attention.tpu", (2, 1, 16)):
        bands = query_tiles.QueryTiles.of(arrays[0].shape, pairs).bands
    assert [len(cut.first) for cut in bands] == [2, 3, 3]
    pod.assert_equals_xla(attend, arrays, options)


def test_bfloat16_is_as_near_as_the_xla_path():
    arrays, options = call(size=(3, 4, 8), heads=2)
    arrays = [*(a.astype(jnp.bfloat16) for a in arrays[:3]), arrays[3]]
    pairs = dict(kernel_size=(3,) * 3, stride=(1,) * 3, dilation=(1,) * 3, is_causal=(False,) * 3, border="shift")
    q, k, v, bias = (np.asarray(a, np.float64) for a in arrays)
    exact = reference.neighborhood_attention(q, k, v, bias=bias, **pairs)[0]
    pod.assert_as_near(functools.partial(attend, tile=(1, 4, 8)), arrays, options, exact)


def test_a_mesh_splits_batch_and_heads():
    arrays, options = call(batch=4, size=(2, 1, 4), heads=4, key_heads=2, kernel_size=(1, 1, 3))
    pod.assert_a_mesh_changes_nothing(functools.partial(attend, tile=(2, 1, 4)), arrays, options)


def test_numbers_of_queries_go_to_rows_and_back():
    options = dict(kernel_size=(3,) * 3, stride=(1,) * 3, dilation=(1,) * 3, is_causal=(False,) * 3, border="shift")
    tiles = query_tiles.QueryTiles.of((2, 8, 6, 48, 8, 32), options)
    assert min(tiles.tiles) > 1
    x = np.arange(2 * 8 * 6 * 48 * 8).reshape(2, 8, 6, 48, 8)
    np.testing.assert_array_equal(tiles.from_rows(tiles.to_rows(x)), x)
    at, step = (slice(n, 2 * n) for n in tiles.tile), tiles.places(False)["tile"].max()
    second = tiles.to_rows(x)[0, 1, sum(int(np.prod(tiles.tiles[i + 1 :])) for i in range(3)), 0]
    np.testing.assert_array_equal(second, x[(0, *at, tiles.heads.in_step)].reshape(-1))
    assert step == np.prod(tiles.tiles) - 1


def gradient(q, k, v, bias, **options):
    def total(*a):
        out = neighborhood_attention(*a[:3], bias=a[3], **options)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(out))

    return jax.value_and_grad(total, (0, 1, 2, 3))(q, k, v, bias)


def shapes(size, heads, head_dim, kernel_size, dtype):
    operand = jax.ShapeDtypeStruct((1, *size, heads, head_dim), dtype)
    return [operand] * 3 + [jax.ShapeDtypeStruct((heads, *(2 * k - 1 for k in kernel_size)), jnp.float32)]


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_it(generation):
    """A block of a video in bfloat16, forward and backward, chosen without being asked for."""
    step = functools.partial(gradient, kernel_size=(3, 7, 7), is_causal=(True, False, False))
    compiled = pod.compile_for(pod.mesh(generation), step, *shapes((8, 14, 14), 4, 32, (3, 7, 7), jnp.bfloat16))
    assert "neighborhood_attention_backward" in compiled.as_text()


STAGES = {  # (size, heads, head_dim, kernel_size, options)
    "video of 8 x 56 x 56": ((8, 56, 56), 4, 32, (3, 7, 7), {}),
    "video of 8 x 56 x 56, heads of 64": ((8, 56, 56), 2, 64, (3, 7, 7), {}),
    "video of 16 x 28 x 28": ((16, 28, 28), 4, 32, (5, 7, 7), {}),
    "video of 16 x 28 x 28, heads of 64, log-sum-exp": ((16, 28, 28), 4, 64, (5, 7, 7), dict(return_lse=True)),
    "volume of 32 a side": ((32, 32, 32), 4, 32, (5, 5, 5), {}),
    "volume, heads of 64": ((32, 32, 32), 2, 64, (5, 5, 5), {}),
    "zeros around, dilated": ((16, 28, 28), 4, 32, (3, 7, 7), dict(border="zero", dilation=(2, 1, 1))),
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(STAGES, ["video of 8 x 56 x 56", "volume of 32 a side"]))
def test_blocks_of_videos_and_volumes_compile(stage, generation):
    size, heads, head_dim, kernel_size, options = STAGES[stage]
    for dtype in (jnp.bfloat16, jnp.float32):
        step = functools.partial(gradient, kernel_size=kernel_size, implementation="tpu", **options)
        pod.compile_for(pod.mesh(generation), step, *shapes(size, heads, head_dim, kernel_size, dtype))


def test_explain_says_why_xla_runs():
    def refused(size, **options):
        operand = jax.ShapeDtypeStruct((1, *size, 4, 32), jnp.bfloat16)
        with jax.set_mesh(pod.mesh("v5e")):
            (choice,) = explain(functools.partial(neighborhood_attention, **options), operand, operand, operand)
        return choice.refused.get("tpu", "")

    assert refused((8, 56, 56), kernel_size=(3, 7, 7)) == ""
    assert refused((4, 4, 4), kernel_size=3, border="zero", return_lse=True) == ""
    assert "dilation=3 does not divide the 8" in refused((8, 16, 16), kernel_size=1, dilation=(3, 1, 1))
    assert "MiB, more than VMEM has" in refused((64, 64, 64), kernel_size=31)
    assert "16,384 tiles take 1.1 MiB, more than SMEM has" in refused((128, 128, 128), kernel_size=5)
    assert "too wide" in refused((4, 4, 210), kernel_size=3)


def test_the_definition_s_output_at_borders_of_all_kinds():
    """Options of three axes at once, against loops over queries and keys."""
    arrays, _ = call(size=(4, 4, 10), heads=2, kernel_size=(3, 1, 5), key_heads=1)
    pairs = dict(
        kernel_size=(3, 1, 5), stride=(2, 1, 3), dilation=(1, 2, 1), is_causal=(True, False, False), border="mask"
    )
    q, k, v, bias = arrays
    with dispatch.interpreted():
        found = attend(arrays, pairs | dict(return_lse=True), "tpu", tile=(4, 1, 10))
    expected = reference.neighborhood_attention(q, k, v, bias=bias, **pairs)
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-5, rtol=1e-5)
