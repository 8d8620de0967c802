import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vision_jax.layers.head import PooledHead
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import LayerNorm


def norm(dim):
    return LayerNorm(dim, epsilon=0.1)


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)


@pytest.mark.parametrize("hidden_norm", [None, norm])
def test_pooled_head(hidden_norm):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    head = PooledHead(6, 5, norm=norm, hidden=7, hidden_norm=hidden_norm)
    wanted = normalised(x.mean((1, 2)))
    wanted = np.asarray(gelu(wanted @ head.pre_logits.fc.kernel[...]))
    wanted = normalised(wanted) if hidden_norm else wanted
    np.testing.assert_allclose(head(x), wanted @ head.fc.kernel[...], rtol=1e-4, atol=1e-6)


def test_no_classes():
    head = PooledHead(6, 0)
    assert not nnx.to_flat_state(nnx.state(head))
    np.testing.assert_allclose(head(jnp.ones((2, 3, 4, 6))), np.ones((2, 6)))
