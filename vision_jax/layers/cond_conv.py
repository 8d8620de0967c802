"""Convolutions whose kernels depend on the example."""

import jax
import jax.numpy as jnp

from vision_jax.layers.conv import Conv
from vision_jax.mesh import over_mesh, split_axes
from vision_jax.parameters import param


class CondConv(Conv):
    """A map [B, H, W, din] and weights [B, num_experts] -> [B, H', W', dout].

    CondConv (Yang et al., 2019, arXiv:1904.04971, section 3): an example's kernel is the sum of the experts' kernels,
    weighted as it says; so the convolution itself costs what one of them would.

    Args:
      num_experts: number of kernels.
      din, dout, kernel_size, **how: see `Conv`; there is no bias.
    """

    def __init__(self, din, dout, kernel_size, num_experts, **how):
        super().__init__(din, dout, kernel_size, bias=False, **how)
        one = self.kernel
        self.kernel = param((num_experts, *one.shape), one.init)

    def __call__(self, x, weights):
        x, kernels = x.astype(self.dtype), jnp.tensordot(weights.astype(self.dtype), self.filters(), 1)
        if kernels.shape[1:3] == self.stride == (1, 1) and self.groups == 1:
            return jnp.einsum("bhwi,bio->bhwo", x, kernels[:, 0, 0])
        maps, axes = ("batch", None, None, None), split_axes({"batch": [len(x)]})
        return over_mesh(self._each, (x, kernels), (maps, (*maps, None)), maps, axes)

    def _each(self, x, kernels):
        return jax.vmap(lambda image, kernel: self._grouped(image[None], kernel)[0])(x, kernels)
