"""Normalisation with the references' arithmetic: two-pass variance, explicit epsilon, at least float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.parameters import batch_stat, ones, param, zeros


class LayerNorm(nnx.Module):
    """Normalises the channels of every token, [..., C] -> [..., C] (Ba et al., 2016, arXiv:1607.06450).

    With `offset` the parameter is the scale's difference from it.
    """

    def __init__(self, dim, *, epsilon, bias=True, scale_init=ones, offset=0.0, dtype=jnp.float32):
        self.epsilon, self.offset, self.dtype = epsilon, offset, dtype
        self.scale = param((dim,), scale_init)
        self.bias = param((dim,), zeros) if bias else None

    def __call__(self, x):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        x = x * (self.scale[...] + self.offset if self.offset else self.scale[...])
        return (x if self.bias is None else x + self.bias[...]).astype(self.dtype)


class BatchNorm(nnx.Module):
    """Normalises every channel over batch and map, [B, ..., C] (Ioffe & Szegedy, 2015, arXiv:1502.03167).

    Training takes the statistics of the whole batch, over all devices, and moves the running ones towards them;
    evaluation takes the running ones. As in torch the running variance is the unbiased one, the batch's own is not.

    Args:
      dim: channels.
      epsilon: added to the variance.
      momentum: weight of the new batch in the running statistics.
      scale_init: initialiser of the scale; `zeros` starts a residual branch as the identity.
      dtype: dtype of the result; the statistics are at least float32.
    """

    def __init__(self, dim, *, epsilon=1e-5, momentum=0.1, scale_init=ones, dtype=jnp.float32):
        self.epsilon, self.momentum, self.dtype = epsilon, momentum, dtype
        self.scale, self.bias = param((dim,), scale_init), param((dim,), zeros)
        self.mean, self.var = batch_stat((dim,), zeros), batch_stat((dim,), ones)

    def __call__(self, x, train=None):
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        mean, var = self.mean[...], self.var[...]
        if train:
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            batch_mean = x.mean(axes)
            batch_var = jnp.square(x - batch_mean).mean(axes)
            new_mean = mean + self.momentum * (batch_mean - mean)
            new_var = var + self.momentum * (batch_var * (n / max(n - 1, 1)) - var)
            self.mean[...], self.var[...] = new_mean.astype(mean.dtype), new_var.astype(var.dtype)
            mean, var = batch_mean, batch_var
        return ((x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]).astype(self.dtype)


def normalise(norm, x, train=None):
    """A norm's result, x itself without one; only batch norms ask whether it is training."""
    if norm is None:
        return x
    return norm(x, train) if isinstance(norm, BatchNorm) else norm(x)


def unit(x, axis=-1):
    """Vectors of length 1 along an axis, any shape; zero stays zero."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.maximum(jnp.square(wide).sum(axis, keepdims=True), 1e-24))).astype(x.dtype)
