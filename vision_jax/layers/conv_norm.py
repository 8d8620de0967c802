"""Convolutions with a batch norm each, and how the norms disappear for deployment.

In evaluation a batch norm is one factor and one offset a channel, which the linear layer before or after it can take
over. A module that keeps such pairs has a method `reparameterize()`, which merges them in place; `reparameterized`
calls that of every module of a model.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm, normalise
from vision_jax.parameters import ones, torch_default, zeros


class ConvNorm(nnx.Module):
    """A convolution, a batch norm, perhaps an activation: [B, H, W, din] -> [B, H/stride, W/stride, dout].

    With `residual` it is x + drop_path(norm(conv(x))), whose shortcut is merged too (RepVGG: Ding et al., 2021,
    arXiv:2101.03697, section 3.3).

    Args:
      din, dout: channels in and out.
      kernel_size, stride, groups: of the convolution; its padding keeps the size of an odd kernel at stride 1.
      bias: whether the convolution has one; the norm's makes it needless in training.
      act: activation after the norm, or None.
      residual: add the input; for a depthwise convolution of stride 1.
      pointwise: what makes a convolution of one pixel: a `PointwiseConv`, or a `Linear` where weight files hold that.
      init, bias_init: initialisers of the convolution.
      scale_init: of the norm's scale.
      norm: `(dim, scale_init=, dtype=) -> module`, where it is no batch norm.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, kernel_size=1, *, stride=1, groups=1, bias=False, act=None, residual=False,
        pointwise=PointwiseConv, init=torch_default, bias_init=torch_default, scale_init=ones, norm=BatchNorm,
        dtype=jnp.float32,
    ):  # fmt: skip
        self.act, self.residual, kw = act, residual, dict(bias=bias, init=init, bias_init=bias_init, dtype=dtype)
        if kernel_size == stride == groups == 1:
            self.conv = pointwise(din, dout, **kw)
        else:
            self.conv = Conv(din, dout, kernel_size, stride=stride, groups=groups, **kw)
        self.bn = norm(dout, scale_init=scale_init, dtype=dtype)

    def __call__(self, x, train=None):
        y = normalise(self.bn, self.conv(x), train)
        y = self.act(y) if self.act else y
        return x + drop_path(y, train) if self.residual else y

    def reparameterize(self):
        """Leaves a convolution with a bias; other norms than a batch norm stay."""
        if not isinstance(self.bn, BatchNorm):
            return
        norm_after(self.conv, self.bn)
        self.bn = None
        if self.residual:
            add_to_middle(self.conv, 1)
            self.residual = False


class ConvNormMlp(nnx.Module):
    """Two 1x1 convolutions with batch norms, an activation between: [B, H, W, C] -> [B, H, W, C].

    Args:
      dim, hidden: channels of the map and between.
      act: the activation.
      depthwise: whether a 3x3 depthwise convolution, batch norm and the activation again stand between the two
        (inverted residual: Sandler et al., 2018, arXiv:1801.04381).
      drop: dropout of the hidden channels and of the result.
      bias: whether the convolutions have biases.
      pointwise: see `ConvNorm`.
      scale_init: of the last norm's scale.
      dtype: dtype of the computation.
    """

    def __init__(
        self, dim, hidden, *, act, depthwise=False, drop=0.0, bias=False, pointwise=PointwiseConv, scale_init=ones,
        dtype=jnp.float32,
    ):  # fmt: skip
        self.drop, kw = drop, dict(bias=bias, pointwise=pointwise, dtype=dtype)
        self.fc1 = ConvNorm(dim, hidden, act=act, **kw)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden, act=act, **kw) if depthwise else None
        self.fc2 = ConvNorm(hidden, dim, scale_init=scale_init, **kw)

    def __call__(self, x, train=None):
        x = self.fc1(x, train)
        x = self.mid(x, train) if self.mid else x
        return dropout(self.fc2(dropout(x, self.drop, train), train), self.drop, train)


class ConvNormStem(nnx.Module):
    """3x3 convolutions of stride 2, an activation between them: [B, H, W, C] -> [B, H/2^n, W/2^n, dims[-1]].

    Args:
      channels: channels in.
      dims: channels out of each.
      act: the activation; none follows the last.
      dtype: dtype of the computation.
    """

    def __init__(self, channels, dims, *, act, dtype=jnp.float32):
        self.depth = len(dims)
        for i, (din, dout) in enumerate(zip((channels, *dims[:-1]), dims, strict=True)):
            last = i == self.depth - 1
            setattr(self, str(i), ConvNorm(din, dout, 3, stride=2, act=None if last else act, dtype=dtype))

    def __call__(self, x, train=None):
        for i in range(self.depth):
            x = getattr(self, str(i))(x, train)
        return x


def add_to_middle(conv, value):
    """Adds a number, or one for each channel, to the middle of a depthwise `Conv`'s kernel, in place."""
    kernel = conv.kernel[...]
    h, w = kernel.shape[-4:-2]
    middle = np.zeros((h, w, 1, 1), np.float32)
    middle[h // 2, w // 2] = 1
    conv.kernel.set_value(kernel + middle * value)


def affine(norm):
    """(factor, offset), [..., C] each, that a batch norm is in evaluation; stacked norms have leading axes."""
    factor = norm.scale[...] * (norm.var[...] + norm.epsilon) ** -0.5
    return factor, norm.bias[...] - norm.mean[...] * factor


def norm_after(layer, norm):
    """Merges a batch norm into the `Linear` or `Conv` before it, in place."""
    factor, offset = affine(norm)
    between = (None,) * (3 if isinstance(layer, Conv) else 1)
    layer.kernel.set_value(layer.kernel[...] * factor[(..., *between, slice(None))])
    _set_bias(layer, offset if layer.bias is None else layer.bias[...] * factor + offset)


def norm_before(norms, layer):
    """Merges batch norms, applied in turn, into the `Linear` or `KV` after them, in place; the norms stay."""
    factor, offset = affine(norms[0])
    for norm in norms[1:]:
        more, further = affine(norm)
        factor, offset = factor * more, offset * more + further
    kernel = layer.kernel[...]
    stacked, flat = factor.shape[:-1], kernel.reshape(*factor.shape, -1)
    shift = (offset[..., None] * flat).sum(-2).reshape(*stacked, *kernel.shape[factor.ndim :])
    layer.kernel.set_value((flat * factor[..., None]).reshape(kernel.shape))
    _set_bias(layer, shift if layer.bias is None else layer.bias[...] + shift)


def _set_bias(layer, value):
    if layer.bias is None:
        layer.bias = nnx.data(nnx.Param(value, init=zeros))  # data, where there was nothing before
    else:
        layer.bias.set_value(value)


def reparameterized(model):
    """A copy of a model, concrete or abstract, in which every module's `reparameterize()` was called.

    Raises:
      InputError: none has one.
    """
    graphdef, state = nnx.split(model)
    merged = []

    def merge(state):
        copy = nnx.merge(graphdef, state)
        modules = [module for _, module in nnx.iter_modules(copy) if module is not copy]
        modules = [module for module in modules if hasattr(module, "reparameterize")]
        if not modules:
            raise InputError(f"{type(model).__name__} has no batch norms that a layer beside them could take over")
        for module in modules:
            module.reparameterize()
        changed, state = nnx.split(copy)
        merged.append(changed)
        return state

    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        state = jax.eval_shape(merge, state)
    else:  # in numpy: of a hundred layers each would be compiled
        state = jax.tree.map(jnp.asarray, merge(jax.tree.map(np.asarray, state)))
    return nnx.merge(merged[0], state)
