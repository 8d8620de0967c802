"""From one resolution to the next: a strided convolution and a norm."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.parameters import trunc_normal, zeros


class Downsample(nnx.Module):
    """A norm and a strided convolution, [B, H, W, Cin] -> [B, H/stride, W/stride, Cout].

    Args:
      din, dout: channels in and out.
      kernel_size, stride, padding: of the convolution.
      norm: `(dim) -> module`, or None.
      norm_first: whether it normalises what goes into the convolution, not what comes out.
      bias: whether the convolution has one; init, bias_init: its initialisers.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, kernel_size, *, stride, padding, norm, norm_first=True, bias=True, init=trunc_normal,
        bias_init=zeros, dtype=jnp.float32,
    ):  # fmt: skip
        self.norm_first = norm_first
        self.norm = norm(din if norm_first else dout) if norm else None
        self.conv = Conv(
            din, dout, kernel_size, stride=stride, padding=padding, bias=bias, init=init, bias_init=bias_init,
            dtype=dtype,
        )  # fmt: skip

    def __call__(self, x):
        if self.norm and self.norm_first:
            return self.conv(self.norm(x))
        x = self.conv(x)
        return self.norm(x) if self.norm else x
