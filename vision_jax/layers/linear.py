"""Linear maps over the channels."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.weighing import shift, weigh
from vision_jax.parameters import param, trunc_normal, zeros


class Linear(nnx.Module):
    """[..., din] -> [..., dout].

    Args:
      din, dout: channels in and out.
      bias: whether a bias is added.
      init, bias_init: initialisers.
      dtype: dtype of the computation; the parameters are float32.
    """

    def __init__(self, din, dout, *, bias=True, init=trunc_normal, bias_init=zeros, dtype=jnp.float32):
        self.dtype = dtype
        self.kernel = param((din, dout), init, (din, dout))
        self.bias = param((dout,), bias_init, (din, dout)) if bias else None

    def __call__(self, x):
        y = weigh(jnp.matmul, x, self.kernel[...], self.dtype)
        return y if self.bias is None else shift(y, self.bias[...])


class PointwiseConv(Linear):
    """A 1x1 convolution in the reference, a matrix product here; weight files hold it with two axes more."""


class PointwiseConv1d(Linear):
    """The same of sequences: weight files hold it with one axis more."""
