"""Positions that tokens learn from their neighbours."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.parameters import trunc_normal, zeros


class ConditionalPosition(nnx.Module):
    """x + depthwise convolution of x, of 3x3 pixels unless said otherwise, [B, H, W, C] -> [B, H, W, C].

    Conditional positional encoding (CPVT: Chu et al., 2021, arXiv:2102.10882, section 3.3): the zeros around the map
    tell positions apart, at any resolution. `init` and `bias_init` are the convolution's initialisers.
    """

    def __init__(self, dim, kernel_size=3, *, init=trunc_normal, bias_init=zeros, dtype=jnp.float32):
        self.proj = Conv(dim, dim, kernel_size, groups=dim, init=init, bias_init=bias_init, dtype=dtype)

    def __call__(self, x):
        return x + self.proj(x)
