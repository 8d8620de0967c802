import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.layers.attention_pool import AttentionPoolLatent
from vision_jax.layers.norm import LayerNorm


def test_pool_equals_the_definition():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=jnp.float64)
        pool = AttentionPoolLatent(6, 2, 10, norm=norm, act=jnp.tanh, dtype=jnp.float64)
        for _, module in nnx.iter_modules(pool):
            for leaf in vars(module).values():
                if isinstance(leaf, nnx.Variable):
                    leaf.set_value(rng.normal(size=leaf.shape))

        def linear(layer, x):
            return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

        x = rng.normal(size=(3, 5, 6))
        query = linear(pool.q, np.asarray(pool.latent[0, 0]))
        wanted = []
        for tokens in x:
            heads = []
            for h in range(2):
                keys, values = (
                    tokens @ np.asarray(pool.kv.kernel[:, i, h]) + np.asarray(pool.kv.bias[i, h]) for i in range(2)
                )
                weights = np.exp(keys @ query[3 * h : 3 * h + 3] / np.sqrt(3))
                heads.append(weights @ values / weights.sum())
            y = linear(pool.proj, np.concatenate(heads))
            z = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * np.asarray(pool.norm.scale[...]) + np.asarray(
                pool.norm.bias[...]
            )
            wanted.append(y + linear(pool.mlp.fc2, np.tanh(linear(pool.mlp.fc1, z))))
        np.testing.assert_allclose(pool(x), wanted, rtol=1e-11)


def test_latent_starts_within_two_deviations():
    latent = AttentionPoolLatent(1024, 2, 1, norm=functools.partial(LayerNorm, epsilon=1e-6)).latent[...]
    assert abs(latent).max() <= 2 / 32
    assert abs(latent.std() * 32 - 0.88) < 0.1  # what the cut leaves of the deviation
