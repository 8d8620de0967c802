import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.class_attention import ClassAttention, ClassBlock
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm


def attention(layer, x):
    """softmax(q k^T / sqrt(d)) v of the first token, a head at a time (CaiT, section 3)."""
    kernel, bias = np.asarray(layer.qkv.kernel[...]), np.asarray(layer.qkv.bias[...])
    out = []
    for head in range(kernel.shape[2]):
        q, k, v = (x @ kernel[:, part, head] + bias[part, head] for part in range(3))
        scores = q[:, :1] @ k.swapaxes(1, 2) / np.sqrt(kernel.shape[3])
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        out.append(weights @ v)
    return np.concatenate(out, -1) @ np.asarray(layer.proj.kernel[...]) + np.asarray(layer.proj.bias[...])


@pytest.fixture
def layer():
    layer = ClassAttention(12, 3)
    for leaf in (layer.qkv.kernel, layer.qkv.bias, layer.proj.bias):
        leaf.set_value(jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape), jnp.float32))
    return layer


def test_equals_the_equation(layer):
    x = np.random.default_rng(0).normal(size=(2, 6, 12)).astype(np.float32)
    np.testing.assert_allclose(layer(x), attention(layer, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("with_mlp", [True, False])
def test_block_changes_the_token_alone(layer, with_mlp):
    def norm(dim):
        return LayerNorm(dim, epsilon=1e-5)

    token, patches = np.split(np.random.default_rng(0).normal(size=(2, 6, 12)).astype(np.float32), [1], axis=1)
    mlp = Mlp(12, 24) if with_mlp else None
    block = ClassBlock(12, attn=layer, norm=norm, mlp=mlp, layer_scale=0.5, dtype=jnp.float32)
    wanted = token + 0.5 * attention(layer, np.asarray(block.norm1(np.concatenate([token, patches], axis=1))))
    if with_mlp:
        wanted = wanted + 0.5 * np.asarray(mlp(block.norm2(wanted)))
    np.testing.assert_allclose(block(token, None, patches), wanted, rtol=0, atol=1e-5)
