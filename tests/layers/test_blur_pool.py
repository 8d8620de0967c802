"""Blurred striding against its filter written out."""

import numpy as np
import pytest

from vision_jax.layers.blur_pool import blur_pool


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("size", [(4, 7), (5, 6)])
def test_blur_pool(size, mode):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    taps = np.outer([1, 2, 1], [1, 2, 1])[..., None] / 16
    wanted = [
        [[(image[i : i + 3, j : j + 3] * taps).sum((0, 1)) for j in range(0, size[1], 2)] for i in range(0, size[0], 2)]
        for image in padded
    ]
    np.testing.assert_allclose(blur_pool(x, mode=mode), wanted, rtol=1e-5, atol=1e-6)
