"""Learned positions that lie as a map."""

from flax import nnx

from vision_jax.layers.resample import resample_map
from vision_jax.parameters import param, trunc_normal


class PositionMap(nnx.Module):
    """x + a learned map, [B, H, W, C] -> [B, H, W, C] of one size; weight files hold it channels-first."""

    def __init__(self, grid, dim):
        self.table = param((1, *grid, dim), trunc_normal)

    def __call__(self, x):
        return x + self.table[...].astype(x.dtype)

    def resample(self, leaf, array):
        """A map made for another size, at this one's."""
        return resample_map(array, self.table.shape[1:3])
