import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchMerging


@pytest.mark.parametrize("norm_last", [False, True])
def test_merging_equals_the_definition(norm_last):
    """Neighbours (0, 0), (1, 0), (0, 1), (1, 1) of every 2 x 2 patches; zeros where an odd map ends."""
    norm = functools.partial(LayerNorm, epsilon=1e-5, dtype=jnp.float64)
    merging = PatchMerging(3, 5, norm=norm, norm_last=norm_last, dtype=jnp.float64)
    kernel = np.asarray(merging.reduction.kernel[...], np.float64)

    def normalised(token):
        return (token - token.mean()) / np.sqrt(token.var() + 1e-5)

    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    padded = np.concatenate([x, np.zeros((2, 1, 6, 3))], axis=1)
    wanted = np.zeros((2, 3, 3, 5))
    for b, i, j in np.ndindex(2, 3, 3):
        four = [padded[b, 2 * i + row, 2 * j + column] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        token = np.concatenate(four)
        wanted[b, i, j] = normalised(token @ kernel) if norm_last else normalised(token) @ kernel
    with jax.enable_x64(True):
        np.testing.assert_allclose(merging(jnp.asarray(x)), wanted, rtol=0, atol=1e-12)
