"""Spatial-reduction attention, adaptive pooling and the depthwise feed-forward network against literal loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vision_jax as vj
from vision_jax.layers.depthwise_mlp import DepthwiseMlp
from vision_jax.layers.pooling import adaptive_avg_pool
from vision_jax.layers.reduced_attention import ReducedAttention


def randomised(module):
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_value(jnp.asarray(rng.normal(size=variable.get_value().shape).astype(np.float32)))
    return module


def values(module):
    return {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(module))}


def literal_attention(x, reduced, w, heads):
    """PVT, equations 2 and 3: one head after the other."""
    dim = x.shape[-1] // heads
    q = (x @ w["q.kernel"] + w["q.bias"]).reshape(-1, heads, dim)
    out = np.zeros_like(q)
    for h in range(heads):
        k, v = (reduced @ w["kv.kernel"][:, i, h] + w["kv.bias"][i, h] for i in range(2))
        scores = np.exp(q[:, h] @ k.T / math.sqrt(dim))
        out[:, h] = scores / scores.sum(1, keepdims=True) @ v
    return out.reshape(x.shape) @ w["proj.kernel"] + w["proj.bias"]


def literal_norm(x, w, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w["norm.scale"] + w["norm.bias"]


def test_reduced_attention_equals_the_equations():
    layer = randomised(ReducedAttention(6, 3, reduction=2))
    x, w = np.random.default_rng(1).normal(size=(5, 7, 6)).astype(np.float32), values(layer)
    small = np.zeros((2, 3, 6))
    for i in range(2):
        for j in range(3):
            small[i, j] = (
                np.einsum("yxc,yxcd->d", x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2], w["sr.kernel"]) + w["sr.bias"]
            )
    wanted = literal_attention(x.reshape(-1, 6), literal_norm(small, w, 1e-5).reshape(-1, 6), w, 3)
    np.testing.assert_allclose(layer(x[None])[0], wanted.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_linear_attention_equals_the_text():
    layer = randomised(ReducedAttention(6, 2, pool=2))
    x, w = np.random.default_rng(1).normal(size=(4, 6, 6)).astype(np.float32), values(layer)
    pooled = x.reshape(2, 2, 2, 3, 6).mean((1, 3)) @ w["sr.kernel"] + w["sr.bias"]
    pooled = literal_norm(pooled, w, 1e-5)
    pooled = 0.5 * pooled * (1 + np.vectorize(math.erf)(pooled / math.sqrt(2)))
    wanted = literal_attention(x.reshape(-1, 6), pooled.reshape(-1, 6), w, 2)
    np.testing.assert_allclose(layer(x[None])[0], wanted.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_unreduced_takes_tokens():
    layer = randomised(ReducedAttention(6, 2))
    x = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    wanted = literal_attention(x, x, values(layer), 2)
    np.testing.assert_allclose(layer(x[None])[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_map_below_the_reduction_is_refused():
    with pytest.raises(vj.InputError, match="reduction=8"):
        ReducedAttention(6, 2, reduction=8)(jnp.zeros((1, 7, 9, 6)))


@pytest.mark.parametrize(("size", "out"), [((26, 19), (7, 7)), ((4, 3), (7, 7)), ((8, 6), (2, 3))])
def test_adaptive_average_equals_the_definition(size, out):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    wanted = np.zeros((2, *out, 3))
    for i in range(out[0]):
        for j in range(out[1]):
            rows = slice(math.floor(i * size[0] / out[0]), math.ceil((i + 1) * size[0] / out[0]))
            columns = slice(math.floor(j * size[1] / out[1]), math.ceil((j + 1) * size[1] / out[1]))
            wanted[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(adaptive_avg_pool(x, out), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_depthwise_mlp_equals_the_text(relu):
    layer = randomised(DepthwiseMlp(3, 4, relu=relu))
    x, w = np.random.default_rng(1).normal(size=(5, 4, 3)).astype(np.float32), values(layer)
    hidden = x @ w["fc1.kernel"] + w["fc1.bias"]
    padded = np.pad(np.maximum(hidden, 0) if relu else hidden, ((1, 1), (1, 1), (0, 0)))
    hidden = np.zeros((5, 4, 4))
    for y in range(5):
        for z in range(4):
            hidden[y, z] = (padded[y : y + 3, z : z + 3] * w["dwconv.kernel"][:, :, 0]).sum((0, 1)) + w["dwconv.bias"]
    hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    np.testing.assert_allclose(layer(x[None])[0], hidden @ w["fc2.kernel"] + w["fc2.bias"], rtol=1e-4, atol=1e-4)
