"""Feed-forward networks."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear

gelu = functools.partial(jax.nn.gelu, approximate=False)
gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


class Mlp(nnx.Module):
    """Two linear maps with an activation between, [..., C] -> [..., C] (Vaswani et al., 2017, equation 2)."""

    def __init__(self, dim, hidden, *, act=gelu, norm=None, drop=0.0, linear=Linear, dtype=jnp.float32):
        self.act, self.drop = act, drop
        self.norm = norm(hidden) if norm else None  # of the hidden channels
        self.fc1, self.fc2 = linear(dim, hidden, dtype=dtype), linear(hidden, dim, dtype=dtype)

    def __call__(self, x, train=None):
        x = dropout(self.act(self.fc1(x)), self.drop, train)
        x = self.norm(x) if self.norm else x
        return dropout(self.fc2(x), self.drop, train)


def quick_gelu(x):
    """x sigmoid(1.702 x), the coarser approximation of GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)
