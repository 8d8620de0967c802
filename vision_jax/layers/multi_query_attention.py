"""Attention of many queries to one head of keys and values, over a map."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.conv import Conv
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.parameters import VarianceScaling, xavier_uniform


class Shared(nnx.Module):
    """Keys or values that all heads share, of a map made smaller by `stride`: [B, H, W, C] -> [B, N, head_dim]."""

    def __init__(self, dim, head_dim, kernel_size, *, stride, dtype):
        kw = dict(bias=False, dtype=dtype)
        init = VarianceScaling(2 / (1 + dim), "fan_in", "uniform")  # Xavier's, of outputs counted over all groups
        down = dict(stride=stride, groups=dim, init=init, **kw)
        self.down_conv = Conv(dim, dim, kernel_size, **down) if stride > 1 else None
        self.norm = BatchNorm(dim, dtype=dtype) if stride > 1 else None
        self.proj = PointwiseConv(dim, head_dim, init=xavier_uniform, **kw)

    def __call__(self, x, train=None):
        x = self.norm(self.down_conv(x), train) if self.norm else x
        x = self.proj(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class MultiQueryAttention(nnx.Module):
    """softmax(q k^T / sqrt(d)) v with one head of keys and values, [B, H, W, C] -> [B, H, W, C].

    Multi-query attention (Shazeer, 2019, arXiv:1911.02150), of which Mobile MQA (MobileNetV4: Qin et al., 2024,
    arXiv:2404.10518, section 4) takes keys and values from a smaller map.

    Args:
      dim: channels.
      num_heads, head_dim: of the queries.
      kernel_size, stride: of the depthwise convolutions that shrink the map for keys and for values, if the stride is
        above one.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, dim, num_heads, head_dim, *, kernel_size=3, stride=1, dtype=jnp.float32):
        kw = dict(bias=False, init=xavier_uniform, dtype=dtype)
        self.num_heads, self.q = num_heads, PointwiseConv(dim, num_heads * head_dim, **kw)
        self.key, self.value = (Shared(dim, head_dim, kernel_size, stride=stride, dtype=dtype) for _ in range(2))
        self.proj = PointwiseConv(num_heads * head_dim, dim, **kw)

    def __call__(self, x, train=None):
        q = self.q(x.reshape(x.shape[0], -1, x.shape[-1]))
        q = q.reshape(*q.shape[:2], self.num_heads, -1)
        k, v = self.key(x, train), self.value(x, train)
        scores = jnp.einsum("bqhd,bkd->bhqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        weights = tap(self, "probabilities", jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1))
        out = jnp.einsum("bhqk,bkd->bqhd", weights.astype(v.dtype), v)
        return self.proj(out.reshape(*x.shape[:-1], -1))
