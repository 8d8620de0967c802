import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.layers.glu import GLU, GatedMlp
from vision_jax.parameters import JaxDraw, NumpyDraw


def filled(layer):
    rng = np.random.default_rng(0)
    for _, module in nnx.iter_modules(layer):
        for leaf in vars(module).values():
            if isinstance(leaf, nnx.Variable):
                leaf.set_value(rng.normal(size=leaf.shape))
    return layer


def test_swiglu_equals_the_definition():
    with jax.enable_x64(True):
        layer = filled(GatedMlp(4, 6, dtype=jnp.float64))
        x = np.random.default_rng(1).normal(size=(2, 3, 4))
        wanted = np.zeros((2, 3, 4))
        kernel, bias = np.asarray(layer.fc1.kernel[...]), np.asarray(layer.fc1.bias[...])
        for b in range(2):
            for n in range(3):
                gate = x[b, n] @ kernel[:, 0] + bias[0]
                value = x[b, n] @ kernel[:, 1] + bias[1]
                hidden = gate / (1 + np.exp(-gate)) * value
                wanted[b, n] = hidden @ np.asarray(layer.fc2.kernel[...]) + np.asarray(layer.fc2.bias[...])
        np.testing.assert_allclose(layer(x), wanted, rtol=1e-12)


def test_second_half_starts_as_one():
    layer = GLU(64, 32)
    for draw in (NumpyDraw(0), JaxDraw(jax.random.key(0))):
        kernel = np.asarray(layer.kernel.get_metadata()["init"](draw, layer.kernel.shape))
        assert abs(kernel[:, 0].std() / 0.02 - 1) < 0.1
        assert abs(kernel[:, 1].std() / 1e-6 - 1) < 0.1
        bias = np.asarray(layer.bias.get_metadata()["init"](draw, layer.bias.shape))
        np.testing.assert_array_equal(bias, [[0] * 32, [1] * 32])
