"""Convolutions whose filters are standardised before they are applied."""

import jax
import jax.numpy as jnp

from vision_jax.layers.conv import Conv


class StandardizedConv(Conv):
    """[B, H, W, Cin] -> [B, H', W', Cout], by filters of mean 0 and variance 1 over their inputs and taps.

    Weight standardisation (Qiao et al., 2019, arXiv:1903.10520, equations 4 and 5).

    Args:
      *args: of `Conv`; its other keywords are taken too.
      standard_epsilon: added to the filters' variance.
      unbiased: whether that is the unbiased one, as in the authors' code; BiT's is not.
    """

    def __init__(self, *args, standard_epsilon, unbiased=False, **options):
        super().__init__(*args, **options)
        self.standard_epsilon, self.unbiased = standard_epsilon, unbiased

    def filters(self):
        kernel = self.kernel[...].astype(jnp.promote_types(self.dtype, jnp.float32))
        kernel = kernel - kernel.mean((0, 1, 2))
        count = kernel[..., 0].size - self.unbiased
        variance = jnp.square(kernel).sum((0, 1, 2)) / count
        return kernel * jax.lax.rsqrt(variance + self.standard_epsilon)
