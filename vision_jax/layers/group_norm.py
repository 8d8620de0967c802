"""Group normalisation of a channels-last map."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import ones, param, zeros


class GroupNorm(nnx.Module):
    """Normalises an example's pixels and a group's channels together, [B, ..., C] -> [B, ..., C].

    Wu & He, 2018 (arXiv:1803.08494, equations 1 to 3). Scale and bias are a channel's own.

    Args:
      dim: channels.
      groups: number of groups; divides dim. 1 normalises all of an example at once.
      epsilon: added to the variance.
      bias: whether a bias is added.
      scale_init: initialiser of the scale.
      dtype: dtype of the result; the norm is computed in at least float32.
    """

    def __init__(self, dim, groups=1, *, epsilon=1e-5, bias=True, scale_init=ones, dtype=jnp.float32):
        self.groups, self.epsilon, self.dtype = groups, epsilon, dtype
        self.scale = param((dim,), scale_init)
        self.bias = param((dim,), zeros) if bias else None

    def __call__(self, x):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        x = group_normalised(x, self.groups, self.epsilon) * self.scale[...]
        return (x if self.bias is None else x + self.bias[...]).astype(self.dtype)


def group_normalised(x, groups, epsilon):
    """An example's pixels and a group's channels at mean 0 and variance 1 together, [B, ..., C] -> [B, ..., C]."""
    shape = x.shape
    x = x.reshape(shape[0], -1, groups, shape[-1] // groups)
    x = x - x.mean((1, 3), keepdims=True)
    return (x * jax.lax.rsqrt(jnp.square(x).mean((1, 3), keepdims=True) + epsilon)).reshape(shape)
