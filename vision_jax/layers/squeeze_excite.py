"""Channels weighted by what the whole map holds."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.linear import PointwiseConv
from vision_jax.parameters import torch_default


class SqueezeExcite(nnx.Module):
    """x sigmoid(W2 act(W1 mean(x))), [B, H, W, C] -> [B, H, W, C].

    Squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507, equations 2 to 4).

    Args:
      dim: channels.
      hidden: channels between the two maps.
      act: activation between them.
      gate: what makes the weights.
      bias: whether the maps have one.
      init, bias_init: initialisers.
      dtype: dtype of the computation.
    """

    def __init__(
        self, dim, hidden, *, act=jax.nn.relu, gate=jax.nn.sigmoid, bias=True, init=torch_default,
        bias_init=torch_default, dtype=jnp.float32,
    ):  # fmt: skip
        self.act, self.gate, kw = act, gate, dict(bias=bias, init=init, bias_init=bias_init, dtype=dtype)
        self.fc1, self.fc2 = PointwiseConv(dim, hidden, **kw), PointwiseConv(hidden, dim, **kw)

    def __call__(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((1, 2), keepdims=True)))))
