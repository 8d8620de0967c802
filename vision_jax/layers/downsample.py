"""From one resolution to the next: a strided convolution and a norm."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.norm import normalise
from vision_jax.parameters import trunc_normal, zeros

# timm's names where stems and ways down are plain sequences of these layers
STEM_IN_SEQUENCE = ((r"^stem\.conv\.", "stem.0."), (r"^stem\.norm\.", "stem.1."))
DOWN_IN_SEQUENCE = ((r"\.downsample\.norm\.", ".downsample.0."), (r"\.downsample\.conv\.", ".downsample.1."))


class Downsample(nnx.Module):
    """A norm and a strided convolution, [B, H, W, Cin] -> [B, H/stride, W/stride, Cout].

    Args:
      din, dout: channels in and out.
      kernel_size, stride, padding: of the convolution.
      norm: `(dim) -> module`, or None.
      norm_first: whether it normalises what goes into the convolution, not what comes out.
      bias: whether the convolution has one; init, bias_init: initialisers of its kernel and bias.
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

    def __call__(self, x, train=None):
        if self.norm_first:
            return self.conv(normalise(self.norm, x, train))
        return normalise(self.norm, self.conv(x), train)
