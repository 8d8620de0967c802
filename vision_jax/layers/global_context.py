"""Channels weighted by what an attention gathers from the map."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.norm import LayerNorm
from vision_jax.parameters import torch_default


class GlobalContext(nnx.Module):
    """x sigmoid(W2 act(norm(W1 context))), [B, H, W, C] -> [B, H, W, C].

    The global context block (Cao et al., 2019, arXiv:1904.11492, section 3.3): the context is a mean of the positions,
    weighted by the softmax of a score of each, the same for every query. There it is added to x; here it weighs x's
    channels, as squeeze-and-excitation does.

    Args:
      dim: channels.
      hidden: channels between the two maps.
      act: activation between them.
      init, bias_init: initialisers.
      dtype: dtype of the computation; softmax and norm are at least float32.
    """

    def __init__(self, dim, hidden, *, act=jax.nn.relu, init=torch_default, bias_init=torch_default, dtype=jnp.float32):
        kw = dict(init=init, bias_init=bias_init, dtype=dtype)
        self.conv_attn, self.mlp_scale = PointwiseConv(dim, 1, **kw), ContextMlp(dim, hidden, act, **kw)

    def __call__(self, x):
        scores = self.conv_attn(x).reshape(len(x), -1)
        weights = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), axis=-1)
        context = jnp.einsum("bn,bnc->bc", weights.astype(x.dtype), x.reshape(len(x), -1, x.shape[-1]))
        return x * jax.nn.sigmoid(self.mlp_scale(context))[:, None, None]


class ContextMlp(nnx.Module):
    """Two maps with a norm between them, [..., dim] -> [..., dim]."""

    def __init__(self, dim, hidden, act, **kw):
        self.act = act
        self.fc1, self.fc2 = PointwiseConv(dim, hidden, **kw), PointwiseConv(hidden, dim, **kw)
        self.norm = LayerNorm(hidden, epsilon=1e-6, dtype=kw["dtype"])

    def __call__(self, x):
        return self.fc2(self.act(self.norm(self.fc1(x))))
