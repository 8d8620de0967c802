import numpy as np
import pytest

from vision_jax.layers.resample import resample_positions, resample_relative_bias


def keys_cubic(x, a=-0.5):
    """The kernel of Keys, 1981 (equation 4)."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def weights(old, new):
    """[new, old]: the kernel centred on each new pixel, widened where the grid shrinks, normalised within the grid."""
    out = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(old):
            out[i, j] = keys_cubic((j - centre) / max(old / new, 1))
    return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("side", "grid", "prefix"), [(4, (7, 9), 1), (6, (3, 4), 2), (5, (2, 8), 0)])
def test_positions_equal_the_definition(side, grid, prefix):
    table = np.random.default_rng(0).normal(size=(1, prefix + side * side, 3)).astype(np.float32)
    given = resample_positions(table, grid, prefix)
    patches = table[0, prefix:].reshape(side, side, 3)
    wanted = np.einsum("ys,xt,stc->yxc", weights(side, grid[0]), weights(side, grid[1]), patches)
    np.testing.assert_allclose(given[0, prefix:].reshape(*grid, 3), wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(given[:, :prefix], table[:, :prefix])
    assert given.dtype == table.dtype


@pytest.mark.parametrize("shape", [(1, 12, 3), (16, 3), (1, 0, 3)])
def test_no_square_is_left_alone(shape):
    table = np.zeros(shape, np.float32)
    assert resample_positions(table, (7, 7), 1) is table


@pytest.mark.parametrize("window", [(7, 7), (3, 9), (2, 1), (5, 4)])
def test_relative_bias_is_linear_between_geometric_positions(window):
    table = np.random.default_rng(0).normal(size=(81, 2)).astype(np.float32)  # of a window of 5
    given = resample_relative_bias(table, window).reshape(2 * window[0] - 1, 2 * window[1] - 1, 2)

    def sides(n):
        """(lower index, share of the upper one) in the old table of each new offset."""
        low, high = 1.01, 1.5
        for _ in range(40):
            middle = (low + high) / 2
            if sum(middle**i for i in range(4)) > n - 1:
                high = middle
            else:
                low = middle
        steps = [sum(low**j for j in range(i)) for i in range(5)]
        old = [-step for step in steps[:0:-1]] + steps
        for offset in range(1 - n, n):
            offset = min(max(offset, old[0]), old[-1])
            lower = max(i for i in range(8) if old[i] <= offset)
            yield lower, (offset - old[lower]) / (old[lower + 1] - old[lower])

    square = table.reshape(9, 9, 2)
    for i, (y, down) in enumerate(sides(window[0])):
        for j, (x, right) in enumerate(sides(window[1])):
            top = square[y, x] * (1 - right) + square[y, x + 1] * right
            bottom = square[y + 1, x] * (1 - right) + square[y + 1, x + 1] * right
            np.testing.assert_allclose(given[i, j], top * (1 - down) + bottom * down, rtol=0, atol=1e-4)
    assert given.dtype == table.dtype


def test_a_table_of_no_square_window_is_left_alone():
    table = np.zeros((15, 2), np.float32)
    assert resample_relative_bias(table, (4, 4)) is table
