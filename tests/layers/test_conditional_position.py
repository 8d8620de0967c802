import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.layers.conditional_position import ConditionalPosition


def test_equals_the_paper():
    """Section 3.3 of arXiv:2102.10882: each channel, with zeros around the map, added to what is there."""
    rng = np.random.default_rng(0)
    layer = ConditionalPosition(2, dtype=jnp.float64)
    kernel, bias = rng.normal(size=(3, 3, 1, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    layer.proj.kernel[...], layer.proj.bias[...] = kernel, bias
    x = rng.normal(size=(1, 3, 4, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = x + bias.astype(np.float64)
    for row, column in np.ndindex(3, 4):
        wanted[:, row, column] += (padded[:, row : row + 3, column : column + 3] * kernel[:, :, 0]).sum((1, 2))
    with jax.enable_x64(True):
        np.testing.assert_allclose(layer(jnp.asarray(x)), wanted, atol=1e-12)
