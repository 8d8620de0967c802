import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.functional import Train
from vision_jax.layers.drop import drop_path, dropout, linear_rates

N = 20_000


def _train(rate=0.0):
    return Train(jax.random.key(0), rate)


def test_dropout_drops_elements_and_keeps_the_mean():
    x = np.full((N // 4, 4), 3.0, np.float32)
    y = np.asarray(dropout(x, 0.3, _train()))
    kept = y != 0
    np.testing.assert_allclose(y[kept], 3 / 0.7, rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / N)
    rows = kept.sum(1)
    assert {0, 1, 2, 3, 4} == set(rows)  # elements, not rows


@pytest.mark.parametrize(("rate", "share"), [(0.3, 1.0), (jnp.float32(0.3), 1.0), (0.6, 0.5)])
def test_drop_path_drops_examples_and_keeps_the_mean(rate, share):
    y = np.asarray(drop_path(np.full((N, 2, 3), 3.0, np.float32), _train(rate), share))
    kept = y != 0
    assert (kept == kept[:, :1, :1]).all()  # examples, not elements
    np.testing.assert_allclose(y[kept], 3 / 0.7, rtol=1e-6)
    assert abs(kept[:, 0, 0].mean() - 0.7) < 4 * np.sqrt(0.21 / N)


def test_a_rate_traced_or_not_gives_the_same_masks():
    x = jax.random.normal(jax.random.key(1), (512, 3))
    for rate in (0.1, 0.2, 1 / 3):
        traced = jax.jit(lambda x, rate: drop_path(x, _train(rate)))(x, jnp.float32(rate))
        plain = drop_path(x, _train(rate))
        np.testing.assert_array_equal(plain == 0, traced == 0)
        np.testing.assert_allclose(plain, traced, rtol=2e-7)


def test_every_use_has_its_own_key():
    train, x = _train(0.5), np.ones((64, 1), np.float32)
    masks = [np.asarray(f()) for f in (lambda: dropout(x, 0.5, train), lambda: drop_path(x, train)) for _ in range(2)]
    assert len({mask.tobytes() for mask in masks}) == 4


def test_evaluation_and_zero_rates_are_the_identity():
    x = np.ones((8, 2), np.float32)
    assert dropout(x, 0.5, None) is x
    assert drop_path(x, None) is x
    assert dropout(x, 0.0, _train()) is x
    assert drop_path(x, _train(0.0)) is x


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_is_kept(dtype):
    with jax.enable_x64(True):
        x = jnp.ones((8, 2), dtype)
        assert dropout(x, 0.5, _train()).dtype == dtype
        for rate in (0.5, jnp.float32(0.5)):
            assert drop_path(x, _train(rate)).dtype == dtype


def test_linear_rates():
    depths, rate = (2, 1, 3), 0.3
    total, flat = sum(depths), []
    for index in range(total):
        flat.append(rate * index / (total - 1))
    got = linear_rates(rate, depths)
    assert [len(stage) for stage in got] == list(depths)
    np.testing.assert_allclose(sum(got, ()), flat, rtol=1e-15)
    assert linear_rates(0.3, (1,)) == ((0.0,),)
