import functools

import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.downsample import Downsample
from vision_jax.layers.norm import LayerNorm

NORM = functools.partial(LayerNorm, epsilon=0.1)


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)


@pytest.mark.parametrize("norm_first", [True, False])
def test_downsample(norm_first):
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 3)).astype(np.float32)
    layer = Downsample(3, 2, 2, stride=2, padding=0, norm=NORM, norm_first=norm_first)
    kernel = np.random.default_rng(1).normal(size=(2, 2, 3, 2)).astype(np.float32)
    layer.conv.kernel.set_value(jnp.array(kernel))
    inside = normalised(x) if norm_first else x
    wanted = np.stack(
        [np.stack([np.einsum("yxc,yxco->o", inside[0, i : i + 2, j : j + 2], kernel) for j in (0, 2)]) for i in (0, 2)]
    )
    np.testing.assert_allclose(layer(x)[0], wanted if norm_first else normalised(wanted), rtol=1e-4, atol=1e-5)
