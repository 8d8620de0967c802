"""Images to maps by convolutions of 3x3."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.norm import BatchNorm


class ConvStem(nnx.Module):
    """3x3 convolutions, each with a batch norm, an activation between them: [B, H, W, C] -> [B, H/r, W/r, dims[-1]].

    Args:
      channels: channels in.
      dims, strides: channels out and stride of each convolution.
      act: the activation; none follows the last.
      dtype: dtype of the computation.
    """

    def __init__(self, channels, dims, strides, *, act, dtype=jnp.float32):
        self.act = act
        convs = zip((channels, *dims[:-1]), dims, strides, strict=True)
        self.convs = nnx.List([Conv(din, dout, 3, stride=stride, dtype=dtype) for din, dout, stride in convs])
        self.norms = nnx.List([BatchNorm(dim, dtype=dtype) for dim in dims])

    def __call__(self, x, train=None):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(self.act(x) if i else x), train)
        return x


def sequential_names(ours, theirs):
    """Renames of a stem for a reference that keeps convolutions, norms and activations in one row."""
    return (
        (rf"^{ours}\.convs\.(\d+)", lambda match: f"{theirs}.{3 * int(match[1])}"),
        (rf"^{ours}\.norms\.(\d+)", lambda match: f"{theirs}.{3 * int(match[1]) + 1}"),
    )
