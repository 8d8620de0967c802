"""Feed-forward networks with a gate (GLU Variants Improve Transformer: Shazeer, 2020, arXiv:2002.05202)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.weighing import shift, weigh
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

    The kernel is stored [C, 2, hidden], so that the hidden features can be split over a mesh axis. By default the
    second half starts as the constant one, as in timm: the layer starts as a plain network of the first.

    Args:
      dim, hidden: channels in, and features of each half.
      bias: whether biases are added.
      init, bias_init: initialisers.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, hidden, *, bias=True, init=PLAIN, bias_init=PLAIN_BIAS, dtype=jnp.float32):
        self.dtype, fans = dtype, (dim, 2 * hidden)
        self.kernel = param((dim, 2, hidden), init, fans)
        self.bias = param((2, hidden), bias_init, fans) if bias else None

    def __call__(self, x):
        kernel = self.kernel[...]
        halves = [weigh(jnp.matmul, x, kernel[:, i], self.dtype) for i in range(2)]
        return halves if self.bias is None else [shift(y, b) for y, b in zip(halves, self.bias[...], strict=True)]


class GatedMlp(nnx.Module):
    """norm(act(x W1 + b1) * (x W2 + b2)) W3 + b3, [..., C] -> [..., C]: SwiGLU and its kin (arXiv:2002.05202).

    Equations 5 and 6, with biases.

    Args:
      dim: channels.
      hidden: features of each half.
      act: activation of the gate, the first of the two first maps.
      gate_last: whether the second is.
      norm: of their product, `(dim) -> module`, or None (sub-layer norm; Magneto: arXiv:2210.06423).
      drop: dropout rate after the product and after the result.
      glu: `(dim, hidden, dtype=) -> module` for the halves; linear: `(hidden, dim, dtype=) -> module` for the last map.
      dtype: dtype of the computation.
    """

    def __init__(
        self, dim, hidden, *, act=jax.nn.silu, gate_last=False, norm=None, drop=0.0, glu=GLU, linear=Linear,
        dtype=jnp.float32,
    ):  # fmt: skip
        self.act, self.gate_last, self.drop = act, gate_last, drop
        self.fc1, self.fc2 = glu(dim, hidden, dtype=dtype), linear(hidden, dim, dtype=dtype)
        self.norm = norm(hidden) if norm else None

    def __call__(self, x, train=None):
        gate, value = reversed(self.fc1(x)) if self.gate_last else self.fc1(x)
        x = dropout(self.act(gate) * value, self.drop, train)
        x = self.norm(x) if self.norm else x
        return dropout(self.fc2(x), self.drop, train)
