"""Squeeze-and-excitation, the pre-normalised MBConv and TensorFlow's padding against literal loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.mbconv import PreNormMBConv
from vision_jax.layers.squeeze_excite import SqueezeExcite


def randomised(module):
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_value(jnp.asarray(rng.uniform(0.5, 1.5, variable.get_value().shape).astype(np.float32)))
    return module


def values(module):
    return {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(module))}


def squeezed(x, w, prefix, act):
    hidden = act(x.mean((0, 1)) @ w[f"{prefix}fc1.kernel"] + w[f"{prefix}fc1.bias"])
    return x / (1 + np.exp(-(hidden @ w[f"{prefix}fc2.kernel"] + w[f"{prefix}fc2.bias"])))


def test_squeeze_excite_equals_the_equations():
    layer, x = randomised(SqueezeExcite(6, 2)), np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    wanted = squeezed(x, values(layer), "", lambda y: np.maximum(y, 0))
    np.testing.assert_allclose(layer(x[None])[0], wanted, rtol=0, atol=1e-5)


def convolved(x, kernel, stride, before, after):
    """A depthwise 3x3 convolution, padded by hand."""
    x = np.pad(x, (*zip(before, after, strict=True), (0, 0)))
    H, W = ((n - 3) // stride + 1 for n in x.shape[:2])
    out = np.zeros((H, W, x.shape[2]))
    for i in range(H):
        for j in range(W):
            patch = x[i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[i, j] = (patch * kernel[:, :, 0]).sum((0, 1))
    return out


@pytest.mark.parametrize(("size", "before", "after"), [((5, 6), (1, 0), (1, 1)), ((8, 7), (0, 1), (1, 1))])
def test_same_padding_is_tensorflows(size, before, after):
    layer = randomised(Conv(3, 3, 3, stride=2, padding="same", groups=3, bias=False))
    x = np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)
    wanted = convolved(x, values(layer)["kernel"], 2, before, after)
    np.testing.assert_allclose(layer(x[None])[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("same", [False, True])
def test_mbconv_equals_the_text(same):
    layer = randomised(
        PreNormMBConv(3, 5, hidden=8, squeezed=2, stride=2, act=jnp.tanh, epsilon=0.1, padding="same" if same else None)
    )
    size = (5, 6) if same else (4, 6)
    x, w = np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32), values(layer)

    def norm(x, name):
        return (x - w[f"{name}.mean"]) / np.sqrt(w[f"{name}.var"] + 0.1) * w[f"{name}.scale"] + w[f"{name}.bias"]

    y = np.tanh(norm(norm(x, "pre_norm") @ w["conv1_1x1.kernel"], "norm1"))
    y = convolved(y, w["conv2_kxk.kernel"], 2, (1, 0) if same else (1, 1), (1, 1))
    y = squeezed(np.tanh(norm(y, "norm2")), w, "se.", lambda y: y / (1 + np.exp(-y)))
    y = y @ w["conv3_1x1.kernel"] + w["conv3_1x1.bias"]
    padded = np.pad(x, ((0, size[0] % 2), (0, 0), (0, 0)))
    short = padded.reshape(len(padded) // 2, 2, 3, 2, 3).mean((1, 3))
    wanted = y + short @ w["shortcut.expand.kernel"] + w["shortcut.expand.bias"]
    np.testing.assert_allclose(layer(x[None])[0], wanted, rtol=0, atol=1e-4)


def test_mbconv_without_stride_adds_what_it_was_given():
    layer = randomised(PreNormMBConv(4, 4, hidden=8, squeezed=2, act=jax.nn.silu))
    layer.conv3_1x1.kernel.set_value(jnp.zeros((8, 4)))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 3, 4)).astype(np.float32))
    np.testing.assert_allclose(layer(x), x + layer.conv3_1x1.bias.get_value(), rtol=0, atol=1e-6)
