"""The mobile blocks against their text, a pixel at a time; all layers but the depthwise are products there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vision_jax.layers.conv import Conv
from vision_jax.layers.inverted_residual import ConvBlock, FusedMBConv, MBConv, Parts, SeparableConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.squeeze_excite import SqueezeExcite

PARTS = Parts(
    functools.partial(Conv, bias=False, dtype=jnp.float64),
    functools.partial(BatchNorm, epsilon=0.1, dtype=jnp.float64),
    jnp.tanh,
    functools.partial(SqueezeExcite, dtype=jnp.float64),
)


def convolved(x, conv):
    """A convolution of one map [H, W, C], with zeros around."""
    kernel, stride = np.asarray(conv.kernel[...]), conv.stride[0]
    kernel, how = (kernel[:, :, 0], "hwo,hwo->o") if conv.groups > 1 else (kernel, "hwc,hwco->o")
    k = len(kernel)
    x = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    out = np.zeros((*((n - k) // stride + 1 for n in x.shape[:2]), kernel.shape[-1]))
    for i, j in np.ndindex(*out.shape[:2]):
        patch = x[i * stride : i * stride + k, j * stride : j * stride + k]
        out[i, j] = np.einsum(how, patch, kernel)
    return out


def normed(x, norm):
    mean, var, scale, bias = (np.asarray(leaf[...]) for leaf in (norm.mean, norm.var, norm.scale, norm.bias))
    return (x - mean) / np.sqrt(var + 0.1) * scale + bias


def weighed(x, se):
    w1, b1, w2, b2 = (np.asarray(a[...]) for a in (se.fc1.kernel, se.fc1.bias, se.fc2.kernel, se.fc2.bias))
    return x / (1 + np.exp(-(np.maximum(x.mean((0, 1)) @ w1 + b1, 0) @ w2 + b2)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [ConvBlock, SeparableConv, MBConv, FusedMBConv])
def test_equals_the_text(kind, stride):
    fields = {SeparableConv: dict(squeezed=2), MBConv: dict(hidden=6, squeezed=2), FusedMBConv: dict(hidden=6)}
    with jax.enable_x64(True):
        block = tiny.refilled(kind(4, 4, 3, stride=stride, parts=PARTS, **fields.get(kind, {})))
        x = np.random.default_rng(1).normal(size=(3, 4, 4))
        ours = block(jnp.asarray(x)[None])[0]
        y = x
        if kind is ConvBlock:
            y = np.tanh(normed(convolved(y, block.conv), block.bn1))
        elif kind is SeparableConv:
            y = weighed(np.tanh(normed(convolved(y, block.conv_dw), block.bn1)), block.se)
            y = normed(convolved(y, block.conv_pw), block.bn2)
        elif kind is MBConv:
            y = np.tanh(normed(convolved(y, block.conv_pw), block.bn1))
            y = weighed(np.tanh(normed(convolved(y, block.conv_dw), block.bn2)), block.se)
            y = normed(convolved(y, block.conv_pwl), block.bn3)
        else:
            y = normed(convolved(np.tanh(normed(convolved(y, block.conv_exp), block.bn1)), block.conv_pwl), block.bn2)
        np.testing.assert_allclose(ours, x + y if stride == 1 else y, rtol=1e-9, atol=1e-9)


def test_a_block_without_a_shortcut():
    assert MBConv(4, 4, 3, hidden=6, parts=PARTS).skip
    assert not any(
        MBConv(4, dout, 3, hidden=6, stride=stride, skip=skip, parts=PARTS).skip
        for dout, stride, skip in ((6, 1, True), (4, 2, True), (4, 1, False))
    )
