"""Convolutions with batch norms against literal loops, and the same without their norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from vision_jax.errors import InputError
from vision_jax.functional import Train, stack_modules
from vision_jax.layers.conv_norm import ConvNorm, ConvNormMlp, norm_before, reparameterized
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm


def randomised(module, seed=0):
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_value(jnp.asarray(rng.uniform(0.5, 1.5, variable.get_value().shape).astype(np.float32)))
    return module


def normalised(y, norm):
    scale, bias, mean, var = (np.asarray(getattr(norm, leaf)[...]) for leaf in ("scale", "bias", "mean", "var"))
    return (y - mean) / np.sqrt(var + norm.epsilon) * scale + bias


@pytest.mark.parametrize("residual", [False, True])
def test_depthwise_with_and_without_a_shortcut(residual):
    layer, x = randomised(ConvNorm(3, 3, 3, groups=3, residual=residual, act=jnp.tanh)), tiny.normal(1, 4, 5, 3)
    padded, kernel = np.pad(x[0], ((1, 1), (1, 1), (0, 0))), np.asarray(layer.conv.kernel[...])[:, :, 0]
    y = np.array([[(padded[i : i + 3, j : j + 3] * kernel).sum((0, 1)) for j in range(5)] for i in range(4)])
    wanted = np.tanh(normalised(y, layer.bn)) + (x[0] if residual else 0)
    np.testing.assert_allclose(layer(x)[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dout", "options"),
    [
        (3, dict(kernel_size=3, groups=3, residual=True)),
        (6, dict(kernel_size=3, stride=2, groups=3, act=jax.nn.relu)),
        (5, dict(kernel_size=1)),
        (5, dict(kernel_size=1, stride=2)),
    ],
)
def test_the_deployed_form_is_equal(dout, options, bias):
    layer, x = randomised(ConvNorm(3, dout, bias=bias, **options)), tiny.normal(2, 5, 4, 3)
    expected = layer(x)
    layer.reparameterize()
    assert [path[-1] for path, _ in nnx.to_flat_state(nnx.state(layer))] == ["bias", "kernel"]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer.reparameterize()  # once is enough
    np.testing.assert_allclose(layer(x, Train(jax.random.key(0))), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_norms_before_a_linear_map(bias):
    norms, layer = [randomised(BatchNorm(3), seed) for seed in (1, 2)], randomised(Linear(3, 4, bias=bias))
    x = tiny.normal(2, 3)
    expected = layer(norms[1](norms[0](x)))
    norm_before(norms, layer)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)


def test_mlp_equals_the_text():
    mlp, x = randomised(ConvNormMlp(3, 5, act=jnp.tanh, depthwise=True, bias=True)), tiny.normal(1, 3, 2, 3)
    layers = (mlp.fc1, mlp.mid, mlp.fc2)
    y = np.tanh(normalised(mlp.fc1.conv(x), layers[0].bn))
    y = np.tanh(normalised(mlp.mid.conv(y), layers[1].bn))
    np.testing.assert_allclose(mlp(x), normalised(mlp.fc2.conv(y), layers[2].bn), rtol=1e-5, atol=1e-5)


def test_stacked_layers():
    """As a scan holds them: each keeps its own."""
    x, layers = tiny.normal(1, 4, 4, 3), [randomised(ConvNorm(3, 3, 3, groups=3, residual=True), i) for i in range(2)]
    stacked = stack_modules(layers)
    stacked.reparameterize()
    graphdef, state = nnx.split(stacked)
    for i, layer in enumerate(layers):
        found = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state))
        np.testing.assert_allclose(found(x), layer(x), rtol=1e-5, atol=1e-5)


def test_a_model_without_such_layers_says_so():
    with pytest.raises(InputError, match="ResNet has no batch norms that a layer beside them could take over"):
        reparameterized(tiny.resnet(abstract=True))
