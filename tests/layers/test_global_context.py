import jax
import jax.numpy as jnp
import numpy as np

import tiny
from vision_jax.layers.global_context import GlobalContext


def test_equals_the_paper():
    """Section 3.3 of arXiv:1904.11492, a position at a time, with a gate in place of the sum."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    with jax.enable_x64(True):
        layer = tiny.refilled(GlobalContext(6, 5, act=jnp.tanh, dtype=jnp.float64))
        ours = np.asarray(layer(jnp.asarray(x)))
        mlp = layer.mlp_scale
        maps = [[np.asarray(leaf[...]) for leaf in (m.kernel, m.bias)] for m in (layer.conv_attn, mlp.fc1, mlp.fc2)]
        scale, bias = np.asarray(mlp.norm.scale[...]), np.asarray(mlp.norm.bias[...])
    (score, shift), (w1, b1), (w2, b2) = maps
    for image, got in zip(x, ours, strict=True):
        weights = {place: np.exp(image[place] @ score[:, 0] + shift[0]) for place in np.ndindex(3, 4)}
        context = sum(w * image[place] for place, w in weights.items()) / sum(weights.values())
        hidden = context @ w1 + b1
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-6) * scale + bias
        gate = 1 / (1 + np.exp(-(np.tanh(hidden) @ w2 + b2)))
        np.testing.assert_allclose(got, image * gate, rtol=1e-9, atol=1e-9)
