"""Grouped convolutions, and how they are computed on CPUs.

XLA on CPUs runs a convolution with groups as a scalar loop: depthwise 7x7 takes 40 times what it could, the gradient
of a grouped 3x3 hundreds of times. There, depthwise convolutions are sums of shifted products, which the compiler
fuses into one vectorised loop, and other groups become dense convolutions. Every other platform gets XLA's own
convolution; `jax.lax.platform_dependent` chooses when the program is lowered, so that a program made on a CPU for a TPU
is the TPU's.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from vision_jax.layers.seam import seam
from vision_jax.layers.taps import gathering, padded, sizes, strided, taps

MOST_TAPS = 81  # kernel elements up to which the shifted products are written out: the compile time grows with them
MOST_POSITIONS = 32  # likewise, output positions that the kernel's gradient takes at once
DENSE = 32  # channels of the dense convolutions that groups are gathered in: below, products are too thin to be fast


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))  # traced once for the equal blocks of a stage
def grouped_conv(x, kernel, stride, padding, dilation, groups):
    """A convolution of `groups` groups of channels that do not mix, differentiable in reverse.

    Args:
      x: [B, H, W, Cin].
      kernel: [kh, kw, Cin / groups, Cout].
      stride, dilation: a pair.
      padding: ((above, below), (left, right)).
      groups: their number.

    Returns:
      [B, H', W', Cout] in x's dtype.
    """
    return _grouped_conv(x, kernel, stride, padding, dilation, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _grouped_conv(x, kernel, stride, padding, dilation, groups):
    own, xla = _forms(stride, padding, dilation, groups, kernel.shape, x.shape)
    return jax.lax.platform_dependent(x, kernel, cpu=own.forward, default=xla.forward)


def _forward(x, kernel, *how):
    return _grouped_conv(x, kernel, *how), (x, kernel)


def _backward(*args):
    *how, (x, kernel), dy = args
    own, xla = _forms(*how, kernel.shape, x.shape)
    return jax.lax.platform_dependent(x, kernel, dy, cpu=own.backward, default=xla.backward)


_grouped_conv.defvjp(_forward, _backward)


def _forms(stride, padding, dilation, groups, kernel_shape, shape):
    """How CPUs compute it and how the others do."""
    xla = _Whole(stride, padding, dilation, groups)
    if groups == shape[-1] == kernel_shape[-1] and kernel_shape[0] * kernel_shape[1] <= MOST_TAPS:
        return _Depthwise(stride, padding, dilation), xla
    return _Dense(stride, padding, dilation, groups), xla


class _Whole:
    """XLA's own convolution."""

    def __init__(self, stride, padding, dilation, groups):
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x, kernel):
        return conv(x, kernel, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, x, kernel, dy):
        return jax.vjp(self.forward, x, kernel)[1](dy)


class _Dense(_Whole):
    """Dense convolutions side by side. Narrow groups share one, whose kernel is zero between the groups."""

    def forward(self, x, kernel):
        kh, kw, cin, cout = kernel.shape
        cout //= self.groups
        shared = max(n for n in range(1, self.groups + 1) if self.groups % n == 0 and (n == 1 or n * cin <= DENSE))
        parts = self.groups // shared
        kernel = kernel.reshape(kh, kw, cin, parts, shared, cout).transpose(3, 0, 1, 4, 2, 5)
        kernel = kernel[..., None, :] * jnp.eye(shared, dtype=kernel.dtype)[:, None, :, None]
        kernel = kernel.reshape(parts, kh, kw, shared * cin, shared * cout)
        maps = jnp.split(x, parts, axis=-1)
        return jnp.concatenate(
            [conv(a, k, self.stride, self.padding, self.dilation) for a, k in zip(maps, kernel, strict=True)], -1
        )


class _Depthwise:
    """Sums of the taps' products, in at least float32."""

    def __init__(self, stride, padding, dilation):
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x, kernel):
        size = sizes(x.shape, kernel.shape, self.stride, self.padding, self.dilation)
        return self._sum(padded(x, self.padding), kernel, size, self.stride)

    def backward(self, x, kernel, dy):
        return self._x_gradient(x, kernel, dy), self._kernel_gradient(x, kernel, dy)

    def _sum(self, x, kernel, size, stride):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        seen = taps(x, kernel.shape, size, stride, self.dilation)
        weights = kernel.reshape(len(seen), -1).astype(wide)
        return seam(sum(tap.astype(wide) * weights[i] for i, tap in enumerate(seen)).astype(x.dtype))

    def _x_gradient(self, x, kernel, dy):
        pads = gathering(x.shape, dy.shape[1:3], kernel.shape, self.stride, self.padding, self.dilation)
        return self._sum(padded(dy, pads), kernel[::-1, ::-1], x.shape[1:3], (1, 1))

    def _kernel_gradient(self, x, kernel, dy):
        """One tile of output positions after another, its products written out: a sum over all is not vectorised."""
        (kh, kw), (sh, sw), (dh, dw) = kernel.shape[:2], self.stride, self.dilation
        (B, h, w, C), wide = dy.shape, jnp.promote_types(x.dtype, jnp.float32)
        columns = -(-w // -(-w // MOST_POSITIONS))
        rows = max(1, min(h, MOST_POSITIONS // columns))
        down, across = -(-h // rows), -(-w // columns)
        reach = [(rows - 1) * sh + (kh - 1) * dh + 1, (columns - 1) * sw + (kw - 1) * dw + 1]  # of a tile, in x
        ends = [(down - 1) * rows * sh + reach[0], (across - 1) * columns * sw + reach[1]]
        x = padded(x, [(p[0], end - n - p[0]) for p, end, n in zip(self.padding, ends, x.shape[1:], strict=False)])
        dy = padded(dy, [(0, down * rows - h), (0, across * columns - w)])

        def tile(total, index):
            i, j = index // across, index % across
            seen = jax.lax.dynamic_slice(x, (0, i * rows * sh, j * columns * sw, 0), (B, *reach, C)).astype(wide)
            grads = jax.lax.dynamic_slice(dy, (0, i * rows, j * columns, 0), (B, rows, columns, C)).astype(wide)
            seen, grads = jax.lax.optimization_barrier((seen, grads))
            for p, q in itertools.product(range(rows), range(columns)):
                patch = strided(seen, (p * sh, q * sw), (kh, kw), self.dilation)
                total = total + patch * grads[:, p : p + 1, q : q + 1]
            return total, None

        total, _ = jax.lax.scan(tile, jnp.zeros((B, kh, kw, C), wide), jnp.arange(down * across))
        return total.sum(0)[:, :, None].astype(kernel.dtype)


def conv(x, kernel, stride, padding, dilation, groups=1):
    """XLA's convolution of a channels-last map."""
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip
