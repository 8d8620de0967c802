"""Relative position biases against loops over queries and keys."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vision_jax.layers.interpolate import bicubic_antialiased
from vision_jax.layers.relative_bias import (
    ClassRelativeBias,
    DistanceBias,
    RelativeBias,
    RelativeBiasMap,
    RelativeBiasMlp,
)

HEADS, WINDOW = 2, (2, 3)
TOKENS = [(y, x) for y in range(WINDOW[0]) for x in range(WINDOW[1])]


def literal(layer, dy, dx):
    """[heads]: the bias for the query's position minus the key's."""
    (h, w), leaves = WINDOW, {path[-2:]: np.asarray(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(layer))}
    if isinstance(layer, RelativeBias):
        return leaves[("relative_position_bias_table",)][(dy + h - 1) * (2 * w - 1) + dx + w - 1]
    if isinstance(layer, RelativeBiasMap):
        return leaves[("relative_position_bias_table",)][:, -dy + h - 1, -dx + w - 1]
    offset = np.array([np.sign(d) * np.log(1 + abs(d)) for d in (dy, dx)])
    hidden = np.maximum(offset @ leaves[("fc1", "kernel")] + leaves[("fc1", "bias")], 0)
    return hidden @ leaves[("fc2", "kernel")] + leaves[("fc2", "bias")]


@pytest.mark.parametrize("kind", [RelativeBias, RelativeBiasMap, RelativeBiasMlp])
def test_equals_the_definition(kind):
    layer, rng = kind(HEADS, WINDOW), np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(layer)):
        variable.set_value(jnp.asarray(rng.normal(size=variable.get_value().shape).astype(np.float32)))
    bias = np.asarray(layer())
    assert bias.shape == (HEADS, 6, 6)
    for i, (qy, qx) in enumerate(TOKENS):
        for j, (ky, kx) in enumerate(TOKENS):
            np.testing.assert_allclose(bias[:, i, j], literal(layer, qy - ky, qx - kx), rtol=0, atol=1e-4)


def test_a_map_is_resampled_as_the_table_is():
    rng, heads = np.random.default_rng(0), 3
    table = rng.normal(size=(9 * 9, heads)).astype(np.float32)
    given = RelativeBiasMap(heads, (3, 7)).resample("", table.reshape(9, 9, heads).transpose(2, 0, 1))
    wanted = RelativeBias(heads, (3, 7)).resample("", table).reshape(5, 13, heads).transpose(2, 0, 1)
    np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_distances(stride):
    (h, w), layer = (3, 5), DistanceBias(HEADS, (3, 5), stride=stride)
    table = np.random.default_rng(0).normal(size=(HEADS, h * w)).astype(np.float32)
    layer.attention_biases.set_value(jnp.asarray(table))
    wanted = [
        [table[:, abs(qy - ky) * w + abs(qx - kx)] for ky in range(h) for kx in range(w)]
        for qy in range(0, h, stride)
        for qx in range(0, w, stride)
    ]
    np.testing.assert_array_equal(layer(), np.moveaxis(wanted, -1, 0))


def test_distances_of_another_map():
    layer, table = DistanceBias(HEADS, (4, 6)), np.random.default_rng(0).normal(size=(HEADS, 9)).astype(np.float32)
    wanted = bicubic_antialiased(table.reshape(1, HEADS, 3, 3).transpose(0, 2, 3, 1), (4, 6))[0]
    np.testing.assert_array_equal(layer.resample("attention_biases", table), wanted.reshape(24, HEADS).T)
    same = np.zeros((HEADS, 24), np.float32)
    assert layer.resample("attention_biases", same) is same  # no square, as its own


def test_class_token_has_biases_of_its_own():
    layer = ClassRelativeBias(HEADS, WINDOW)
    table = np.random.default_rng(0).normal(size=layer.relative_position_bias_table.shape).astype(np.float32)
    layer.relative_position_bias_table.set_value(jnp.asarray(table))
    bias, plain = np.asarray(layer()), RelativeBias(HEADS, WINDOW)
    plain.relative_position_bias_table.set_value(jnp.asarray(table[:-3]))
    np.testing.assert_array_equal(bias[:, 1:, 1:], plain())
    np.testing.assert_array_equal(bias[:, 0, 1:], np.repeat(table[-3, :, None], len(TOKENS), axis=1))
    np.testing.assert_array_equal(bias[:, 1:, 0], np.repeat(table[-2, :, None], len(TOKENS), axis=1))
    np.testing.assert_array_equal(bias[:, 0, 0], table[-1])
