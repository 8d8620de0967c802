"""Positions for maps of any size."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.position import fourier_2d
from vision_jax.parameters import trunc_normal, zeros


class FourierPositions(nnx.Module):
    """A learned map of fixed sines and cosines, (height, width) -> [height, width, dim] (XCiT: arXiv:2106.09681)."""

    features = 32  # an axis

    def __init__(self, dim, *, init=trunc_normal, bias_init=zeros, dtype=jnp.float32):
        self.token_projection = PointwiseConv(2 * self.features, dim, init=init, bias_init=bias_init, dtype=dtype)

    def __call__(self, height, width):
        return self.token_projection(fourier_2d(height, width, self.features))
