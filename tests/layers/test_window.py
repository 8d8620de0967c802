import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import windows
from vision_jax.layers.window import WindowAttention


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((4, 6), (2, 3), (0, 0)), ((4, 6), (2, 3), (1, 1)), ((5, 7), (3, 3), (1, 1)), ((3, 5), (3, 4), (0, 2))],
)
def test_equals_the_paper(size, window, shift):
    """Equation 4 and figure 4; the table by rows, then by columns, of query minus key."""
    rng = np.random.default_rng(0)
    attn = WindowAttention(6, 2, window, shift, dtype=jnp.float64)
    nnx.update(attn, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), nnx.state(attn)))
    kernel, bias = (np.asarray(leaf[...], np.float64) for leaf in (attn.qkv.kernel, attn.qkv.bias))
    table = np.asarray(attn.relative_position_bias_table[...], np.float64)
    table = table.reshape(2 * window[0] - 1, 2 * window[1] - 1, 2)

    def project(token):
        return np.einsum("c,cihd->ihd", token, kernel) + bias

    def score(q, k, rows, columns):
        return (q * k).sum(-1) / np.sqrt(3) + table[rows + window[0] - 1, columns + window[1] - 1]

    x = rng.normal(size=(2, *size, 6))
    wanted = np.stack([windows.attend(one, project, score, window, shift) for one in x])
    wanted = wanted @ np.asarray(attn.proj.kernel[...], np.float64) + np.asarray(attn.proj.bias[...], np.float64)
    with jax.enable_x64(True):
        np.testing.assert_allclose(attn(jnp.asarray(x)), wanted, rtol=0, atol=1e-11)
