"""Mixing in the frequency domain."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.mesh import over_mesh, split_axes
from vision_jax.parameters import Normal, param


class GlobalFilter(nnx.Module):
    """A map convolved with learned filters as large as itself, around its borders: [B, H, W, C] -> [B, H, W, C].

    Its discrete Fourier transform is multiplied by a learned complex number for each frequency and channel (GFNet: Rao
    et al., 2021, arXiv:2107.00645, section 3.2). Half of the frequencies along the rows say all, the map is real.

    Args:
      dim: channels.
      size: (H, W).
      dtype: dtype of the result; the transforms are at least float32.

    Raises:
      InputError: when called with a map of another size.
    """

    def __init__(self, dim, size, *, dtype=jnp.float32):
        (h, w), self.size, self.dtype = size, tuple(size), dtype
        self.complex_weight = param((h, w // 2 + 1, dim, 2), Normal(0.02))

    def __call__(self, x):
        if x.shape[1:3] != self.size:
            raise InputError(f"a map of {x.shape[1]} x {x.shape[2]} given, the filter is for {self.size}: img_size=...")
        wide = jnp.promote_types(self.dtype, jnp.float32)
        maps, weight = ("batch", None, None, None), self.complex_weight[...].astype(wide)
        # each device its own examples: the compiler would gather them all for a transform
        axes = split_axes({"batch": [x.shape[0]]})
        return over_mesh(filtered, (x.astype(wide), weight), (maps, (None,) * 4), maps, axes).astype(self.dtype)

    def resample(self, leaf, array):
        """A filter made for another, square map, at this one's: the same convolution, zero beyond its reach."""
        side = len(array)
        if array.shape[1] != side // 2 + 1 or (side, side) == self.size:
            return array
        kernel = np.fft.irfft2(array[..., 0] + 1j * array[..., 1], s=(side, side), axes=(0, 1))
        for axis, size in enumerate(self.size):
            reach = np.arange(-(min(side, size) // 2), -(-min(side, size) // 2))  # offsets that both have
            wider = np.zeros((*kernel.shape[:axis], size, *kernel.shape[axis + 1 :]))
            places = (slice(None),) * axis
            wider[(*places, reach)] = kernel[(*places, reach)]
            kernel = wider
        frequencies = np.fft.rfft2(kernel, axes=(0, 1))
        return np.stack([frequencies.real, frequencies.imag], axis=-1).astype(array.dtype)


def filtered(x, weight):
    """A real map [B, H, W, C] with its frequencies multiplied by (real, imaginary) parts [H, W // 2 + 1, C, 2]."""
    frequencies = jnp.fft.rfft2(x, axes=(1, 2)) * jax.lax.complex(weight[..., 0], weight[..., 1])
    return jnp.fft.irfft2(frequencies, s=x.shape[1:3], axes=(1, 2))
