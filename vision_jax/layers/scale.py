"""Learned scales of residual branches."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import Constant, param


class LayerScale(nnx.Module):
    """A learned factor a channel, [..., C] -> [..., C] (CaiT: Touvron et al., 2021, arXiv:2103.17239, section 2.2)."""

    def __init__(self, dim, init, *, dtype=jnp.float32):
        self.dtype = dtype
        self.gamma = param((dim,), Constant(init))

    def __call__(self, x):
        return x * self.gamma[...].astype(self.dtype)


class MapLayerScale(LayerScale):
    """The same; weight files of the reference hold it as a map [1, C, 1, 1]."""


class ChannelLayerScale(LayerScale):
    """The same; weight files of the reference hold it as [C, 1, 1]."""
