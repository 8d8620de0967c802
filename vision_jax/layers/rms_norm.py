"""Norms that only rescale: no mean is taken away, no bias added."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import ones, param


class RMSNorm(nnx.Module):
    """Divides the channels of every token by their root mean square, [..., C] -> [..., C].

    Zhang & Sennrich, 2019 (arXiv:1910.07467, equation 4).

    Args:
      dim: channels.
      epsilon: added to the mean square.
      dtype: dtype of the result; the norm is computed in at least float32.
    """

    def __init__(self, dim, *, epsilon, dtype=jnp.float32):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = param((dim,), ones)

    def __call__(self, x):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        return (x * jax.lax.rsqrt(self.spread(x) + self.epsilon) * self.scale[...]).astype(self.dtype)

    def spread(self, x):
        """What the square root is taken of, [..., C] -> [..., 1]."""
        return jnp.square(x).mean(-1, keepdims=True)


class SimpleNorm(RMSNorm):
    """Divides the channels of every token by their standard deviation, unbiased, and keeps their mean (timm's)."""

    def spread(self, x):
        return x.var(-1, ddof=1, keepdims=True)
