"""Global response normalisation."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import param, zeros


class GlobalResponseNorm(nnx.Module):
    """Channels compete by their norm over the map, [B, H, W, C] -> [B, H, W, C].

    ConvNeXt V2 (Woo et al., 2023, arXiv:2301.00808, section 3.3): x + scale * x * (|x_c| / mean of all |x_c|) + bias,
    where |x_c| is the Euclidean norm of a channel's pixels. It starts as the identity.

    Args:
      dim: channels.
      epsilon: added to the mean.
      dtype: dtype of the result; the norms are computed in at least float32.
    """

    def __init__(self, dim, *, epsilon=1e-6, dtype=jnp.float32):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale, self.bias = param((dim,), zeros), param((dim,), zeros)

    def __call__(self, x):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        squares = jnp.square(x).sum((1, 2), keepdims=True)
        alive = squares > 0  # the square root has no gradient at zero: an empty channel's is zero, as in torch
        norms = jnp.where(alive, jnp.sqrt(jnp.where(alive, squares, 1)), 0)
        relative = norms / (norms.mean(-1, keepdims=True) + self.epsilon)
        return (x + self.scale[...] * (x * relative) + self.bias[...]).astype(self.dtype)
