"""What a token's neighbours tell it, where attention knows no places."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import BatchNorm
from vision_jax.parameters import trunc_normal, zeros


class LocalInteraction(nnx.Module):
    """Two depthwise convolutions, GELU and a batch norm between them, [B, H, W, C] -> [B, H, W, C].

    XCiT's local patch interaction (El-Nouby et al., 2021, arXiv:2106.09681, section 3.3).

    Args:
      dim: channels.
      kernel_size: of both convolutions.
      init, bias_init: their initialisers.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, kernel_size, *, init=trunc_normal, bias_init=zeros, dtype=jnp.float32):
        kw = dict(groups=dim, init=init, bias_init=bias_init, dtype=dtype)
        self.conv1, self.conv2 = (Conv(dim, dim, kernel_size, **kw) for _ in range(2))
        self.bn = BatchNorm(dim, dtype=dtype)

    def __call__(self, x, train=None):
        return self.conv2(self.bn(gelu(self.conv1(x)), train))
