"""Feed-forward networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.seam import seam


@jax.custom_jvp
def gelu(x):
    """x P(X <= x) for a normal X (Hendrycks & Gimpel, 2016, arXiv:1606.08415), in at least float32.

    By the error function as in torch; `jax.nn.gelu` takes its complement, which costs three times as much on CPUs.
    """
    return seam((x * _normal_cdf(x)).astype(x.dtype))


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    """One factor is all that the backward pass keeps."""
    (x,), (dx,) = primals, tangents
    cdf, wide = _normal_cdf(x), x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) * (2 * np.pi) ** -0.5
    return seam((x * cdf).astype(x.dtype)), dx * seam(slope.astype(x.dtype))


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x.astype(jnp.promote_types(x.dtype, jnp.float32)) * 0.5**0.5))


gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


class Mlp(nnx.Module):
    """Two linear maps with an activation between, [..., C] -> [..., C] (Vaswani et al., 2017, equation 2).

    `linear`: `(din, dout, dtype=) -> module` for both; `last` for the second, where it is another.
    """

    def __init__(self, dim, hidden, *, act=gelu, norm=None, drop=0.0, linear=Linear, last=None, dtype=jnp.float32):
        self.act, self.drop = act, drop
        self.norm = norm(hidden) if norm else None  # of the hidden channels
        self.fc1, self.fc2 = linear(dim, hidden, dtype=dtype), (last or linear)(hidden, dim, dtype=dtype)

    def __call__(self, x, train=None):
        x = dropout(self.act(self.fc1(x)), self.drop, train)
        x = self.norm(x) if self.norm else x
        return dropout(self.fc2(x), self.drop, train)


def quick_gelu(x):
    """x sigmoid(1.702 x), the coarser approximation of GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)
