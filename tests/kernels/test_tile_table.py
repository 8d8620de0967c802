"""Tiles that are not the rule's: kernels of any tile equal the definition, and rows of the table overrule rules."""

import functools
import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from vision_jax.kernels import dispatch, explain, linear_attention, neighborhood_attention, tile_table, window_attention
from vision_jax.kernels.linear_attention import reference as linear_reference
from vision_jax.kernels.linear_attention.chunks import Chunks
from vision_jax.kernels.linear_attention.token_tiles import TokenTiles
from vision_jax.kernels.neighborhood_attention import reference as neighborhood_reference
from vision_jax.kernels.neighborhood_attention.query_tiles import QueryTiles
from vision_jax.kernels.packed_heads import Heads
from vision_jax.kernels.window_attention import reference as window_reference
from vision_jax.kernels.window_attention.bands import Bands
from vision_jax.kernels.window_attention.runs import Runs

import tpu as pod

# each example compiles, and so would every step of making a failing one smaller
few = hypothesis.settings(max_examples=3, phases=[hypothesis.Phase.generate])


def assert_equals_definition(operator, kernel, tile, arrays, options, expected):
    """Output as the definition's, gradients as the XLA path's, with this tile."""

    def attend(arrays, options, implementation):
        with tile_table.trying(kernel, tile):
            return operator(*arrays, implementation=implementation, **options)

    arrays = [jnp.asarray(a, jnp.float32) for a in arrays]
    (out, gradients), (_, theirs) = pod.kernel_and_xla(attend, arrays, options)
    np.testing.assert_allclose(out, expected, atol=2e-5 * np.abs(expected).max())
    pod.assert_close(gradients, theirs, 1e-4)


@pytest.mark.heavy
@few
@hypothesis.given(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(0, 2), st.integers(1, 12))
def test_windows_of_any_number_at_once(batch, rows, columns, shift, at_once):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(3, batch, 3 * rows, 4 * columns, 2, 16))
    options = dict(window_size=(3, 4), shift=(shift, shift))
    expected, _ = window_reference.window_attention(*arrays, scale=16**-0.5, **options)
    assert_equals_definition(window_attention, "window_attention.tpu", at_once, arrays, options, expected)


@pytest.mark.heavy
@few
@hypothesis.given(
    st.data(), st.integers(1, 2), st.sampled_from([(4,), (6,), (8,), (3, 4), (4, 3)]), st.sampled_from([8, 16, 24])
)
def test_neighborhoods_of_any_tile(data, batch, others, width):
    """Of maps of two and of three axes; `others`: all but the columns."""
    columns = data.draw(st.sampled_from([n for n in range(8, width + 1, 8) if width % n == 0]))
    cuts = itertools.product(*([n for n in range(1, m + 1) if m % n == 0] for m in others))
    fitting = [cut for cut in cuts if math.prod(cut) * columns >= min(32, math.prod(others) * columns)]
    tile = (*(1,) * (2 - len(others)), *data.draw(st.sampled_from(fitting)), columns)
    rng, axes = np.random.default_rng(0), 1 + len(others)
    arrays = rng.normal(size=(3, batch, *others, width, 2, 16))
    options = dict(kernel_size=(3, 3, 5)[-axes:], is_causal=(False,) * axes, border="shift")
    options |= dict(stride=(1,) * axes, dilation=(1,) * axes)
    expected, _ = neighborhood_reference.neighborhood_attention(*arrays, bias=None, scale=16**-0.5, **options)
    assert_equals_definition(neighborhood_attention, "neighborhood_attention.tpu", tile, arrays, options, expected)


@pytest.mark.heavy
@few
@hypothesis.given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 5), st.booleans())
def test_linear_of_any_tile(batch, tokens, sixteens, whole):
    tile = tokens if whole else min(16 * sixteens, tokens)
    rng = np.random.default_rng(0)
    arrays = np.abs(rng.normal(size=(3, batch, tokens, 2, 16)))
    options = dict(normalizer=True)
    expected, _ = linear_reference.linear_attention(*arrays, **options)
    assert_equals_definition(linear_attention, "linear_attention.tpu", tile, arrays, options, expected)


@pytest.mark.heavy
@few
@hypothesis.given(st.integers(1, 2), st.integers(1, 70), st.integers(1, 80), st.booleans())
def test_chunks_of_any_size(batch, tokens, size, reverse):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(3, batch, tokens, 2, 16))
    options = dict(causal=True, reverse=reverse, log_decay=np.array([-0.1, -1.0], np.float32))
    expected, _ = linear_reference.linear_attention(*arrays, **options)
    assert_equals_definition(linear_attention, "causal_linear_attention.tpu", size, arrays, options, expected)


# A layout for each kernel, what tells its call apart, and its rule's tile.
LAYOUTS = {
    "window_attention.tpu": (lambda: Bands(2, (14, 14), (7, 7), (0, 0), (1, 1), Heads(4, 32)), "at_once", 8),
    "window_attention.gpu": (lambda: Runs(2, (14, 14), (7, 7), (0, 0), (1, 1), 4, 32), "blocks", 528),
    "neighborhood_attention.tpu": (
        lambda: QueryTiles(2, (1, 32, 64), Heads(4, 32), (1, 7, 7), (1,) * 3, (False,) * 3, "shift"), "tile", (1, 8, 16)
    ),
    "linear_attention.tpu": (lambda: TokenTiles(2, 4096, Heads(4, 32)), "tile", 1024),
    "causal_linear_attention.tpu": (lambda: Chunks(2, 4096, Heads(4, 32), False, False), "size", 128),
}  # fmt: skip


@pytest.mark.parametrize("kernel", LAYOUTS)
def test_a_row_overrules_the_rule_on_its_device(kernel, monkeypatch):
    """A layout of another tile is another layout: what was compiled for one does not serve the other."""
    make, field, rule = LAYOUTS[kernel]
    with tile_table.asked() as asked:
        by_rule = make()
    assert asked == [(kernel, asked[0].call, rule, asked[0].candidates)]
    assert getattr(by_rule, field) == rule
    assert len({*asked[0].candidates}) == len(asked[0].candidates) > 2
    other = next(tile for tile in asked[0].candidates if tile != rule)
    monkeypatch.setattr(tile_table, "TABLE", {("TPU v6 lite", kernel, asked[0].call): other})
    assert make() == by_rule
    monkeypatch.setattr(dispatch, "device", lambda: ("tpu", "TPU v6 lite"))
    assert getattr(make(), field) == other
    assert make() != by_rule
    with tile_table.trying(kernel, rule):
        assert make() == by_rule
    monkeypatch.setattr(dispatch, "device", lambda: ("tpu", "TPU v5 lite"))
    assert make() == by_rule


def test_tiles_of_neighborhoods_cut_the_map_evenly():
    for size in ((1, 56, 56), (1, 28, 28), (1, 14, 14), (1, 1, 4096), (1, 30, 40), (8, 56, 56), (10, 9, 14)):
        with tile_table.asked() as asked:
            QueryTiles(1, size, Heads(4, 32), (1, 7, 7), (1,) * 3, (False,) * 3, "shift")
        for planes, rows, columns in asked[0].candidates:
            assert size[0] % planes == size[1] % rows == size[2] % columns == 0
            assert columns % 8 == 0 or columns == size[2]
            assert 32 <= planes * rows * columns <= 256


def test_a_chunk_size_that_is_not_the_rows_is_refused(monkeypatch):
    operand = jax.ShapeDtypeStruct((2, 512, 4, 32), jnp.bfloat16)
    ask = functools.partial(linear_attention, causal=True, chunk_size=128)
    with jax.set_mesh(pod.mesh("v6e")):
        assert explain(ask, operand, operand, operand)[0].implementation == "tpu"
        row = ("TPU v6 lite", "causal_linear_attention.tpu", (32,))
        monkeypatch.setattr(tile_table, "TABLE", {row: 256})
        (choice,) = explain(ask, operand, operand, operand)
    assert choice.refused["tpu"] == "chunk_size=128: the kernel's is 256"


@pytest.mark.heavy
def test_what_the_compiler_gets_is_the_rows_tile(monkeypatch):
    """4,096 tokens in chunks of 512 are 8 states that the backward pass reads, not 32."""
    monkeypatch.setattr(tile_table, "TABLE", {("TPU v6 lite", "causal_linear_attention.tpu", (32,)): 512})
    operand = jax.ShapeDtypeStruct((1, 4096, 4, 32), jnp.bfloat16)
    step = jax.grad(lambda *a: linear_attention(*a, causal=True).astype(jnp.float32).sum())
    for generation, chunks in (("v6e", 8), ("v5e", 32)):
        text = pod.compile_for(pod.mesh(generation), step, *[operand] * 3).as_text()
        assert f"f32[1,{chunks},32,128]" in text
