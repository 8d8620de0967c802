"""Feed-forward networks with a gate (GLU Variants Improve Transformer: Shazeer, 2020, arXiv:2002.05202)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.parameters import Normal, ones, param, zeros


@dataclasses.dataclass(frozen=True)
class Halves:
    """An initialiser for each of the two halves that lie along the last axis but one."""

    first: Callable
    second: Callable

    def bind(self, fan_in, fan_out):
        return Halves(*(h.bind(fan_in, fan_out) if hasattr(h, "bind") else h for h in (self.first, self.second)))

    def __call__(self, draw, shape):
        chosen = np.array([[1], [0]], np.float32)
        return self.first(draw, shape) * chosen + self.second(draw, shape) * (1 - chosen)


PLAIN, PLAIN_BIAS = Halves(Normal(0.02), Normal(1e-6)), Halves(zeros, ones)


class GLU(nnx.Module):
    """Two linear maps of the same input, [..., C] -> two [..., hidden].

    The kernel is stored [C, 2, hidden], so that the hidden features can be split over a mesh axis. The second half
    starts as the constant one, as in timm: the layer starts as a plain network of the first.

    Args:
      dim, hidden: channels in, and features of each half.
      init, bias_init: initialisers.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, hidden, *, init=PLAIN, bias_init=PLAIN_BIAS, dtype=jnp.float32):
        self.dtype, fans = dtype, (dim, 2 * hidden)
        self.kernel = param((dim, 2, hidden), init, fans)
        self.bias = param((2, hidden), bias_init, fans)

    def __call__(self, x):
        x, kernel, bias = x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return [x @ kernel[:, i] + bias[i] for i in range(2)]


class SwiGLU(nnx.Module):
    """(silu(x W1 + b1) * (x W2 + b2)) W3 + b3, [..., C] -> [..., C] (arXiv:2002.05202, equation 6, with biases).

    Args:
      dim: channels.
      hidden: features of each half.
      gate_last: whether the second of the two first maps is the gate.
      glu, linear: `(din, dout) -> module` for the two first maps and for the last.
      drop: dropout rate after the product and after the result.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, hidden, *, gate_last=False, glu=GLU, linear=Linear, drop=0.0, dtype=jnp.float32):
        self.gate_last, self.drop = gate_last, drop
        self.fc1, self.fc2 = glu(dim, hidden, dtype=dtype), linear(hidden, dim, dtype=dtype)

    def __call__(self, x, train=None):
        gate, value = reversed(self.fc1(x)) if self.gate_last else self.fc1(x)
        return dropout(self.fc2(dropout(jax.nn.silu(gate) * value, self.drop, train)), self.drop, train)
