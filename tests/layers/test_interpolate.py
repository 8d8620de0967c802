import numpy as np
import pytest

from vision_jax.layers.interpolate import bicubic, bilinear


def keys(d, a=-0.75):
    """The kernel of Keys, 1981, equation 4."""
    d = abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize("size", [(9, 4), (5, 12), (7, 6)])
def test_equals_the_definition(size):
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    wanted = np.zeros((2, *size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            y, z = (row + 0.5) * 7 / size[0] - 0.5, (column + 0.5) * 6 / size[1] - 0.5
            for i in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for j in range(int(np.floor(z)) - 1, int(np.floor(z)) + 3):
                    pixel = x[:, min(max(i, 0), 6), min(max(j, 0), 5)]
                    wanted[:, row, column] += keys(y - i) * keys(z - j) * pixel
    np.testing.assert_allclose(bicubic(x, size), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "align_corners"), [((14, 12), False), ((3, 9), False), ((14, 4), True), ((1, 8), True)]
)
def test_bilinear_equals_the_definition(size, align_corners):
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    wanted = np.zeros((2, *size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            y, z = max((row + 0.5) * 7 / size[0] - 0.5, 0), max((column + 0.5) * 6 / size[1] - 0.5, 0)
            if align_corners:
                y, z = row * 6 / max(size[0] - 1, 1), column * 5 / (size[1] - 1)
            for i in range(7):
                for j in range(6):
                    weight = max(1 - abs(min(y, 6) - i), 0) * max(1 - abs(min(z, 5) - j), 0)
                    wanted[:, row, column] += weight * x[:, i, j]
    np.testing.assert_allclose(bilinear(x, size, align_corners), wanted, rtol=0, atol=1e-5)
