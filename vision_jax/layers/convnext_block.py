"""The block of ConvNeXt, which networks of large depthwise kernels share."""

from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path
from vision_jax.layers.scale import LayerScale
from vision_jax.mesh import constrain_batch
from vision_jax.parameters import trunc_normal, zeros


class ConvNeXtBlock(nnx.Module):
    """x + drop_path(scale(MLP(norm(depthwise convolution(x))))), [B, H, W, C] -> [B, H, W, C].

    ConvNeXt (Liu et al., 2022, arXiv:2201.03545, figure 4). With a stride, or other channels in, it adds to what the
    convolution gives: [B, H, W, din] -> [B, H/stride, W/stride, C].

    Args:
      dim: channels.
      kernel_size: of the convolution.
      mlp: called as mlp(x, train).
      norm: `(dim) -> module`.
      layer_scale: initial value of the branch's scale, or None for no scale.
      din, stride: of the convolution; None for `dim` channels in.
      shortcut: a module for what a stride or other channels in is added to, in place of what the convolution gives.
      bias, init, bias_init: whether the convolution has a bias, and its initialisers.
      dtype: dtype of the computation.
    """

    def __init__(
        self, dim, kernel_size, *, mlp, norm, layer_scale, din=None, stride=1, shortcut=None, bias=True,
        init=trunc_normal, bias_init=zeros, dtype,
    ):  # fmt: skip
        din = dim if din is None else din
        self.shortcut, self.after = shortcut, shortcut is None and (stride > 1 or din != dim)
        self.conv_dw = Conv(
            din, dim, kernel_size, stride=stride, groups=din, bias=bias, init=init, bias_init=bias_init, dtype=dtype
        )
        self.norm, self.mlp = norm(dim), mlp
        self.ls = None if layer_scale is None else LayerScale(dim, layer_scale, dtype=dtype)

    def __call__(self, x, train=None):
        y = tap(self, "conv_dw", self.conv_dw(x))
        x = self.shortcut(x) if self.shortcut else y if self.after else x
        y = tap(self, "mlp", self.mlp(self.norm(y), train))
        return tap(self, "output", constrain_batch(x + drop_path(self.ls(y) if self.ls else y, train)))
