"""Lambdas: linear functions of a map's content and positions, which queries are put into."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.grouped_conv import conv
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.position import relative_index
from vision_jax.parameters import Normal, param, torch_default


class LambdaLayer(nnx.Module):
    """Interactions without attention maps, [B, H, W, C] -> [B, H, W, C].

    LambdaNetworks (Bello, 2021, arXiv:2102.08602, sections 3.1 and 3.2), as timm has it, with an intra-depth of 1: the
    content lambda is sum_m softmax_m(k)_m v_m^T, the position lambda of query n is sum_m e_nm v_m^T; every head puts
    its queries into their sum.

    Args:
      dim: channels.
      num_heads, key_dim: heads, and channels of a head's queries; keys and values have no heads, values have
        dim / num_heads channels.
      radius: side of the neighbourhood that positions are told apart in; None for the whole map.
      size: (H, W) of the map; only the whole map's positions are made for it.
      dtype: dtype of the computation; softmax and norms are at least float32.
    """

    def __init__(self, dim, num_heads, key_dim, *, radius, size, dtype=jnp.float32):
        self.num_heads, self.size, self.dtype = num_heads, size, dtype
        queries, values = num_heads * key_dim, dim // num_heads
        self.splits = (queries, queries + key_dim)
        init = Normal(dim**-0.5, limit=2.0)
        self.qkv = PointwiseConv(dim, queries + key_dim + values, bias=False, init=init, dtype=dtype)
        self.norm_q, self.norm_v = BatchNorm(queries, dtype=dtype), BatchNorm(values, dtype=dtype)
        self.conv_lambda = LocalLambdas(radius, key_dim, dtype=dtype) if radius else None
        table = (2 * size[0] - 1, 2 * size[1] - 1, key_dim)
        self.pos_emb = None if radius else param(table, Normal(0.02, limit=2.0))

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        q, k, v = jnp.split(self.qkv(x), self.splits, axis=-1)
        q = self.norm_q(q, train).reshape(B, H * W, self.num_heads, -1)
        v = self.norm_v(v, train)
        k = k.reshape(B, H * W, -1).astype(jnp.promote_types(self.dtype, jnp.float32))
        k = jax.nn.softmax(k, axis=1).astype(self.dtype)
        content = jnp.einsum("bmk,bmv->bkv", k, v.reshape(B, H * W, -1))
        out = jnp.einsum("bnhk,bkv->bnhv", q, content) + jnp.einsum("bnhk,bvnk->bnhv", q, self._positions(v))
        return out.reshape(B, H, W, C)

    def _positions(self, v):
        """Values [B, H, W, V] -> the position lambdas [B, V, H W, key_dim]."""
        if self.conv_lambda:
            return self.conv_lambda(v)
        table = self.pos_emb[...].astype(self.dtype)
        embeddings = table.reshape(-1, table.shape[-1])[relative_index(*self.size).T]  # of the key's minus the query's
        return jnp.einsum("nmk,bmv->bvnk", embeddings, v.reshape(v.shape[0], -1, v.shape[-1]))


class LocalLambdas(nnx.Module):
    """Position lambdas of a neighbourhood: one convolution for every value, [B, H, W, V] -> [B, V, H W, key_dim]."""

    def __init__(self, radius, key_dim, *, dtype):
        self.dtype, fans = dtype, (radius * radius, radius * radius * key_dim)
        self.kernel = param((radius, radius, 1, key_dim), Normal(key_dim**-0.5, limit=2.0))
        self.bias = param((key_dim,), torch_default, fans)

    def __call__(self, v):
        (B, H, W, V), kernel = v.shape, self.kernel[...].astype(self.dtype)
        maps = v.transpose(0, 3, 1, 2).reshape(B * V, H, W, 1)
        pads = tuple((side // 2, side // 2) for side in kernel.shape[:2])
        out = conv(maps, kernel, (1, 1), pads, (1, 1)) + self.bias[...].astype(self.dtype)
        return out.reshape(B, V, H * W, -1)
