"""Normalisation over the batch, then within each example: Batch-Channel Normalization."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.group_norm import group_normalised
from vision_jax.layers.norm import BatchNorm
from vision_jax.parameters import ones, param, zeros

EPSILON = 1e-5  # of the groups' variance


class EstimatedBatchNorm(BatchNorm):
    """Normalises every channel by the running statistics, in training too: for batches too small to have their own.

    The batch moves the statistics first; no gradient passes through them. Its variance is taken around the mean as it
    was (Qiao et al., 2019, arXiv:1911.09738, algorithm 1; EstBN in the authors' code).
    """

    def __call__(self, x, train=None):
        if train:
            wide = jax.lax.stop_gradient(x.astype(jnp.promote_types(self.dtype, jnp.float32)))
            axes, mean, var = tuple(range(x.ndim - 1)), self.mean[...], self.var[...]
            new_mean = mean + self.momentum * (wide.mean(axes) - mean)
            new_var = var + self.momentum * (jnp.square(wide - mean).mean(axes) - var)
            self.mean[...], self.var[...] = new_mean.astype(mean.dtype), new_var.astype(var.dtype)
        return super().__call__(x)


class BatchChannelNorm(nnx.Module):
    """A batch norm, then a normalisation of each example's groups of channels, [B, H, W, C] -> [B, H, W, C].

    Batch-Channel Normalization (Qiao et al., 2019, arXiv:1911.09738, section 4). Each has its own scale and bias: the
    batch norm a channel's, the second a group's, as in the authors' code.

    Args:
      dim: channels.
      groups: number of groups; divides dim.
      estimated: the batch norm takes the running statistics in training too.
      momentum: weight of the new batch in them.
      scale_init: initialiser of the groups' scale.
      dtype: dtype of the result; the norms are computed in at least float32.
    """

    def __init__(self, dim, groups=32, *, estimated=False, momentum=0.1, scale_init=ones, dtype=jnp.float32):
        self.groups, self.dtype = groups, dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        self.pbn = (EstimatedBatchNorm if estimated else BatchNorm)(dim, momentum=momentum, dtype=wide)
        self.scale, self.bias = param((groups,), scale_init), param((groups,), zeros)

    def __call__(self, x, train=None):
        x = group_normalised(self.pbn(x, train), self.groups, EPSILON)
        each = x.shape[-1] // self.groups
        return (x * jnp.repeat(self.scale[...], each) + jnp.repeat(self.bias[...], each)).astype(self.dtype)
