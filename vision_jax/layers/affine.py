"""An affine map of every channel, in place of a norm."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import ones, param, zeros


class Affine(nnx.Module):
    """alpha x + beta a channel, [..., C] -> [..., C] (ResMLP: Touvron et al., 2021, arXiv:2105.03404, equation 1)."""

    def __init__(self, dim, *, dtype=jnp.float32):
        self.dtype = dtype
        self.alpha, self.beta = param((dim,), ones), param((dim,), zeros)

    def __call__(self, x):
        return x.astype(self.dtype) * self.alpha[...].astype(self.dtype) + self.beta[...].astype(self.dtype)
