"""Convolutions of several kernel sizes side by side."""

import itertools

import jax.numpy as jnp
from flax import nnx


class MixedConv(nnx.Module):
    """[B, H, W, din] -> [B, H', W', dout]: a convolution for each kernel size, of its share of the channels.

    MixConv (Tan & Le, 2019, arXiv:1907.09595, section 3.1). The shares are equal; the first has what is left over.

    Args:
      din, dout: channels in and out.
      kernel_sizes: those of the convolutions.
      make: `(din, dout, kernel_size) -> module`, one of them.
    """

    def __init__(self, din, dout, kernel_sizes, make):
        dins, douts = (_shares(dim, len(kernel_sizes)) for dim in (din, dout))
        for i, how in enumerate(zip(dins, douts, kernel_sizes, strict=True)):
            setattr(self, str(i), make(*how))
        self.ends = tuple(itertools.accumulate(dins))

    def __call__(self, x):
        maps = jnp.split(x, self.ends[:-1], axis=-1)
        return jnp.concatenate([getattr(self, str(i))(part) for i, part in enumerate(maps)], axis=-1)


def _shares(channels, parts):
    share = channels // parts
    return [channels - share * (parts - 1)] + [share] * (parts - 1)
