import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.fold import fold, unfold

CASES = [((5, 7), 3, 2, 1), ((6, 4), 3, 2, 1), ((6, 6), 2, 2, 0), ((7, 5), 3, 1, 1), ((7, 8), 3, 2, 0)]


def windows(size, window, stride, padding):
    """(window, place in it, row, column) of every pixel of every window that lies in the map."""
    h, w = ((n + 2 * padding - window) // stride + 1 for n in size)
    for top in range(h):
        for left in range(w):
            for i in range(window):
                for j in range(window):
                    row, column = top * stride - padding + i, left * stride - padding + j
                    if 0 <= row < size[0] and 0 <= column < size[1]:
                        yield (top, left), i * window + j, row, column


@pytest.mark.parametrize(("size", "window", "stride", "padding"), CASES)
def test_pixels_and_back(size, window, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    given = np.asarray(unfold(jnp.asarray(x), window, stride=stride, padding=padding))
    wanted, pieces = np.zeros_like(given), rng.normal(size=given.shape).astype(np.float32)
    total = np.zeros_like(x)
    for at, place, row, column in windows(size, window, stride, padding):
        wanted[:, *at, place] = x[:, row, column]
        total[:, row, column] += pieces[:, *at, place]
    np.testing.assert_array_equal(given, wanted)
    folded = fold(jnp.asarray(pieces), size, window, stride=stride, padding=padding)
    np.testing.assert_allclose(folded, total, rtol=0, atol=1e-5)
