"""Channels weighted by what the whole map holds of them and of their neighbours."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import param, torch_default


class EfficientChannelAttention(nnx.Module):
    """x sigmoid(conv(mean(x))), [B, H, W, C] -> [B, H, W, C]; the convolution runs over the channels.

    ECA (Wang et al., 2020, arXiv:1910.03151, equations 5 and 12: its kernel grows with the logarithm of the channels).

    Args:
      dim: channels.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, *, dtype=jnp.float32):
        size = int((math.log2(dim) + 1) / 2)
        size = max(size if size % 2 else size + 1, 3)
        self.dtype, self.conv = dtype, param((size,), torch_default, (size, size))

    def __call__(self, x):
        kernel, C = self.conv[...].astype(self.dtype), x.shape[-1]
        means = jnp.pad(x.mean((1, 2)), ((0, 0), (len(kernel) // 2, len(kernel) // 2)))
        gates = jax.nn.sigmoid(sum(kernel[i] * means[:, i : i + C] for i in range(len(kernel))))
        return x * gates[:, None, None]
