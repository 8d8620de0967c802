"""Feed-forward networks with a gate (GLU Variants Improve Transformer: Shazeer, 2020, arXiv:2002.05202)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.parameters import param


@dataclasses.dataclass(frozen=True)
class HalvesNormal:
    """Normal, with a mean and a deviation for each of the two halves that lie along the last axis but one."""

    means: tuple
    stds: tuple

    def __call__(self, draw, shape):
        mean, std = (np.array(values, np.float32)[:, None] for values in (self.means, self.stds))
        return draw.normal(shape) * std + mean


class GLU(nnx.Module):
    """Two linear maps of the same input, [..., C] -> two [..., hidden].

    The kernel is stored [C, 2, hidden], so that the hidden features can be split over a mesh axis. The second half
    starts as the constant one, as in timm: the layer starts as a plain network of the first.
    """

    def __init__(self, dim, hidden, *, dtype=jnp.float32):
        self.dtype = dtype
        self.kernel = param((dim, 2, hidden), HalvesNormal((0.0, 0.0), (0.02, 1e-6)))
        self.bias = param((2, hidden), HalvesNormal((0.0, 1.0), (0.0, 0.0)))

    def __call__(self, x):
        x, kernel, bias = x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return [x @ kernel[:, i] + bias[i] for i in range(2)]


class SwiGLU(nnx.Module):
    """(silu(x W1 + b1) * (x W2 + b2)) W3 + b3, [..., C] -> [..., C] (arXiv:2002.05202, equation 6, with biases).

    Args:
      dim: channels.
      hidden: features of each half.
      drop: dropout rate after the product and after the result.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, hidden, *, drop=0.0, dtype=jnp.float32):
        self.drop = drop
        self.fc1, self.fc2 = GLU(dim, hidden, dtype=dtype), Linear(hidden, dim, dtype=dtype)

    def __call__(self, x, train=None):
        gate, value = self.fc1(x)
        return dropout(self.fc2(dropout(jax.nn.silu(gate) * value, self.drop, train)), self.drop, train)
