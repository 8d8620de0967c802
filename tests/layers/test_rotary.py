import math

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.functional import Train
from vision_jax.layers.rotary import MixedFrequencies, MixedRotary, Rotary, axial_angles, random_factor, rotate


def test_angles_count_rows_then_columns():
    angles = axial_angles(2, 3, (1.0, 0.25))
    for token, (row, column) in enumerate(np.ndindex(2, 3)):
        np.testing.assert_array_equal(angles[token], [row, 0.25 * row, column, 0.25 * column])


def test_rotate_equals_the_paper():
    """Equation 34, one pair of channels at a time, over the axes of a map."""
    x, angles = np.random.default_rng(0).normal(size=(2, 2, 3, 2, 8)), axial_angles(2, 3, (1.0, 0.25))
    with jax.enable_x64(True):
        ours = rotate(jnp.asarray(x), angles)
        assert ours.dtype == jnp.float64
    for b, row, column, head, pair in np.ndindex(2, 2, 3, 2, 4):
        angle = angles[3 * row + column, pair]
        turned = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        theirs = turned @ x[b, row, column, head, 2 * pair : 2 * pair + 2]
        np.testing.assert_allclose(ours[b, row, column, head, 2 * pair : 2 * pair + 2], theirs, atol=1e-14)


def test_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(1)
    q, k = (np.broadcast_to(rng.normal(size=8), (1, 4, 5, 1, 8)) for _ in range(2))
    with jax.enable_x64(True):
        q, k = (np.asarray(rotate(jnp.asarray(x), axial_angles(4, 5, (1.0, 0.1))))[0, :, :, 0] for x in (q, k))
    assert np.isclose(q[0, 0] @ k[2, 3], q[1, 1] @ k[3, 4], rtol=1e-12)
    assert not np.isclose(q[0, 0] @ k[2, 3], q[0, 0] @ k[3, 2], rtol=1e-3)


def test_narrow_types_turn_in_float32():
    x = jnp.ones((1, 64, 1, 4), jnp.bfloat16)
    turned = rotate(x, axial_angles(64, 1, (1.0,)))
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(turned[0, 63, 0, 0].astype(np.float32), math.cos(63) - math.sin(63), atol=4e-3)


def test_rotary_of_a_grid():
    """Every option against the definition, one channel pair at a time; tokens before the patches stay."""
    x = np.random.default_rng(0).normal(size=(1, 1 + 6, 1, 8))
    for reference, offset, columns_first, centred, halves, factor in (
        (None, 0.0, False, False, False, 1.0),
        (4, 1.0, True, False, False, 1.0),
        (None, 0.0, False, True, True, 1.0),
        (None, 0.0, False, True, True, np.float64(1.5)),
    ):
        rotary = Rotary((2, 3), 1, 100.0, reference, offset, columns_first, centred, halves)
        with jax.enable_x64(True):
            ours = np.asarray(rotary(jnp.asarray(x), jnp.asarray(factor)))
        np.testing.assert_array_equal(ours[:, :1], x[:, :1])
        for token, place in enumerate(np.ndindex(2, 3)):
            for pair in range(4):
                axis = 1 - pair // 2 if columns_first else pair // 2
                count, n = place[axis], (2, 3)[axis]
                where = (count + offset) / n * reference if reference else count + offset
                where = 2 * math.pi * (2 * (count + 0.5) / n - 1) if centred else where
                angle = factor * where / 100 ** (pair % 2 / 2)
                first, second = (pair, pair + 4) if halves else (2 * pair, 2 * pair + 1)
                a, b = x[0, 1 + token, 0, [first, second]]
                wanted = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
                np.testing.assert_allclose(ours[0, 1 + token, 0, [first, second]], wanted, atol=1e-14)


def test_random_factors_are_log_uniform():
    """Four quarters of the logarithm's range are met alike, within four errors of 1,000 draws."""
    factors = jax.vmap(lambda key: random_factor(Train(key), 2.0))(jax.random.split(jax.random.key(0), 1000))
    counts, _ = np.histogram(np.log2(factors), bins=4, range=(-1, 1))
    assert counts.sum() == 1000
    np.testing.assert_allclose(counts, 250, atol=4 * math.sqrt(1000 * 3 / 16))


def test_mixed_rotary_of_a_grid():
    """Each head turns pair by pair, by column * f_x + row * f_y; tokens before the patches stay."""
    rng = np.random.default_rng(0)
    x, frequencies = rng.normal(size=(1, 1 + 6, 2, 8)), rng.normal(size=(2, 2, 4))
    with jax.enable_x64(True):
        ours = np.asarray(MixedRotary((2, 3), 1)(jnp.asarray(x), jnp.asarray(frequencies)))
    np.testing.assert_array_equal(ours[:, :1], x[:, :1])
    for token, (row, column) in enumerate(np.ndindex(2, 3)):
        for head, pair in np.ndindex(2, 4):
            angle = column * frequencies[0, head, pair] + row * frequencies[1, head, pair]
            a, b = x[0, 1 + token, head, 2 * pair : 2 * pair + 2]
            wanted = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
            np.testing.assert_allclose(ours[0, 1 + token, head, 2 * pair : 2 * pair + 2], wanted, atol=1e-14)


def test_mixed_frequencies_start_along_two_turned_axes():
    """Of one length for each pair of axes, at a right angle, in a direction of each head's own."""
    fx, fy = (np.moveaxis(np.asarray(f), -1, 0) for f in MixedFrequencies(3, 5, 8, 10.0).freqs[...])
    assert fx.shape == (4, 3, 5)
    for i in range(2):
        np.testing.assert_allclose(np.hypot(fx[i], fy[i]), 10 ** -(i / 2), rtol=1e-6)
        np.testing.assert_allclose([fx[2 + i], fy[2 + i]], [-fy[i], fx[i]], rtol=1e-6)
    np.testing.assert_allclose(fx[1] / fx[0], 10**-0.5, rtol=1e-5)
    assert len(np.unique(fx[0])) == 15
