import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import DictKey

from vision_jax import parameters
from vision_jax.names import STACKED
from vision_jax.parameters import Constant, Damped, JaxDraw, Normal, NumpyDraw, Uniform, VarianceScaling, param

SHAPE = (400, 250)
N = math.prod(SHAPE)
DRAWS = [pytest.param(lambda: NumpyDraw(5), id="numpy"), pytest.param(lambda: JaxDraw(jax.random.key(5)), id="jax")]
FANS = (200, 50)
INITS = [
    # initialiser, mean, standard deviation, bound
    (Normal(0.3), 0.0, 0.3, None),
    (Normal(0.3, mean=2.0), 2.0, 0.3, None),
    (Normal(1e-6), 0.0, 1e-6, None),
    (parameters.trunc_normal, 0.0, 0.02, 2.0),
    # the truncated normal's variance: 1 - 2 a phi(a) / (2 Phi(a) - 1), here at a = 1
    (Normal(0.5, limit=0.5), 0.0, 0.5 * math.sqrt(1 - 2 * 0.24197072451914337 / 0.6826894921370859), 0.5),
    (Uniform(-1.0, 3.0), 1.0, 4 / math.sqrt(12), None),
    (parameters.torch_default, 0.0, 1 / math.sqrt(3 * 200), 1 / math.sqrt(200)),
    (parameters.kaiming_normal, 0.0, math.sqrt(2 / 50), None),
    (parameters.xavier_uniform, 0.0, math.sqrt(2 / 250), math.sqrt(6 / 250)),
    (VarianceScaling(1.0, "fan_in"), 0.0, math.sqrt(1 / 200), None),
]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("init", "mean", "std", "bound"), INITS)
def test_initialisers(draw, init, mean, std, bound):
    init = init.bind(*FANS) if hasattr(init, "bind") else init
    values = np.asarray(init(draw(), SHAPE))
    assert values.shape == SHAPE
    assert values.dtype == np.float32
    centred = np.float64(values) - mean
    assert abs(centred.mean()) < 4.5 * std / math.sqrt(N)
    # the standard error of a standard deviation is its own value / sqrt(2 N) for a normal, less for the bounded ones
    assert abs(math.sqrt(np.square(centred).mean()) / std - 1) < 4.5 / math.sqrt(2 * N)
    if bound is not None:
        assert abs(centred).max() <= bound * (1 + 1e-6)
        if bound < 1:
            assert abs(centred).max() > 0.999 * bound
    elif isinstance(init, Normal):
        assert abs(centred).max() > 3.5 * std  # not cut


@pytest.mark.parametrize("draw", DRAWS)
def test_constants(draw):
    for init, value in ((parameters.zeros, 0), (parameters.ones, 1), (Constant(1e-5), np.float32(1e-5))):
        values = np.asarray(init(draw(), (3, 2)))
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, np.full((3, 2), value))


def test_initialisers_are_hashable_and_equal_by_value():
    assert hash(Normal(0.1)) == hash(Normal(0.1))
    assert Normal(0.1) == Normal(0.1)
    assert parameters.torch_default.bind(3, 4) == parameters.torch_default.bind(3, 9)


def test_param():
    made = param((2, np.int64(3)), Normal(1.0))
    assert isinstance(made, nnx.Param)
    assert made.shape == (2, 3)
    assert made.dtype == jnp.float32
    assert made.get_metadata()["init"] == Normal(1.0)
    assert len(np.unique(made[...])) == 6
    assert not np.allclose(made[...], param((2, 3), Normal(1.0))[...])
    assert isinstance(parameters.batch_stat((2,), parameters.ones), nnx.BatchStat)
    assert param((2,), parameters.kaiming_normal, (8, 2)).get_metadata()["init"] == Normal(1.0)


def test_abstract_parameters_make_shapes():
    with parameters.abstract_parameters():
        made = param((2, 3), Normal(1.0)).get_value()
    assert made == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(KeyError), parameters.abstract_parameters():
        raise KeyError
    assert isinstance(param((2, 3), Normal(1.0)).get_value(), jax.Array)


def _path(*parts):
    return tuple(map(DictKey, parts))


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda path, shape, seed=0: _draw(parameters.draw_numpy, path, shape, seed), id="numpy"),
        pytest.param(
            lambda path, shape, seed=0: _draw(parameters.draw_jax, path, shape, jax.random.key(seed)), id="jax"
        ),
    ],
)
def test_a_leaf_is_drawn_from_seed_and_name(draw):
    one = draw(_path("blocks", "1", "kernel"), (4, 3))
    np.testing.assert_array_equal(one, draw(_path("blocks", "1", "kernel"), (4, 3)))
    assert (one != draw(_path("blocks", "0", "kernel"), (4, 3))).all()
    assert (one != draw(_path("blocks", "1", "kernel"), (4, 3), seed=1)).all()
    stacked = draw(_path("blocks", "stacked", "kernel"), (3, 4, 3))
    for i in range(3):
        np.testing.assert_array_equal(stacked[i], draw(_path("blocks", str(i), "kernel"), (4, 3)))


def _draw(function, path, shape, seed):
    return np.asarray(function(Normal(1.0), path, jax.ShapeDtypeStruct(shape, jnp.float32), seed))


@pytest.mark.parametrize("draw", ["numpy", "jax"])
def test_damped_tells_the_block_by_its_name(draw):
    """Alike where blocks are stacked, and in block l the draw without it over sqrt(2 l)."""

    def drawn(init, *keys, shape):
        path, leaf = tuple(map(DictKey, ("blocks", *keys, "fc2", "kernel"))), jax.ShapeDtypeStruct(shape, jnp.float32)
        if draw == "numpy":
            return parameters.draw_numpy(init, path, leaf, 0)
        return np.asarray(parameters.draw_jax(init, path, leaf, jax.random.key(0)))

    damped, stacked = Damped(Normal(0.02)), drawn(Damped(Normal(0.02)), STACKED, shape=(3, 4, 5))
    for i in range(3):
        alone = drawn(damped, str(i), shape=(4, 5))
        np.testing.assert_allclose(stacked[i], alone, rtol=1e-6)
        np.testing.assert_allclose(alone * math.sqrt(2 * (i + 1)), drawn(damped.init, str(i), shape=(4, 5)), rtol=1e-6)
