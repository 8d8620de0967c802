"""Norms with an activation of their own, of channels-last maps, that no statistics of the batch enter."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import ones, param, zeros


class EvoNorm(nnx.Module):
    """x sigmoid(v x) / deviation of the group, scaled and shifted: [B, H, W, C] -> [B, H, W, C].

    EvoNorm-S0 (Liu et al., 2020, arXiv:2004.02967, table 2), found by a search over norms and activations together.

    Args:
      dim: channels.
      groups: number of groups; divides dim.
      epsilon: added to the variance.
      dtype: dtype of the result; it is computed in at least float32.
    """

    def __init__(self, dim, groups, *, epsilon=1e-5, dtype=jnp.float32):
        self.groups, self.epsilon, self.dtype = groups, epsilon, dtype
        self.scale, self.bias, self.v = param((dim,), ones), param((dim,), zeros), param((dim,), ones)

    def __call__(self, x):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        grouped = x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        factor = jax.lax.rsqrt(grouped.var((1, 3), keepdims=True) + self.epsilon)
        out = (grouped * factor).reshape(x.shape) * jax.nn.sigmoid(x * self.v[...])
        return (out * self.scale[...] + self.bias[...]).astype(self.dtype)


class FilterResponseNorm(nnx.Module):
    """max(x / root mean square over the map, scaled and shifted, tau): [B, H, W, C] -> [B, H, W, C].

    Filter response normalisation with its thresholded linear unit (Singh & Krishnan, 2019, arXiv:1911.09737, equations
    1 to 3).

    Args:
      dim: channels.
      epsilon: added to the mean square.
      dtype: dtype of the result; it is computed in at least float32.
    """

    def __init__(self, dim, *, epsilon=1e-5, dtype=jnp.float32):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale, self.bias, self.tau = param((dim,), ones), param((dim,), zeros), param((dim,), zeros)

    def __call__(self, x):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        x = x * jax.lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + self.epsilon)
        return jnp.maximum(x * self.scale[...] + self.bias[...], self.tau[...]).astype(self.dtype)
