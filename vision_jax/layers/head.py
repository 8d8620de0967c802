"""From a map to logits."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import normalise


class Hidden(nnx.Module):
    """A hidden layer of a classifier: a linear map, an activation and perhaps a norm, [..., C] -> [..., hidden]."""

    def __init__(self, dim, hidden, *, act, norm=None, linear=Linear, dtype):
        self.act = act
        self.fc = linear(dim, hidden, dtype=dtype)
        self.norm = norm(hidden) if norm else None

    def __call__(self, x):
        x = self.act(self.fc(x))
        return self.norm(x) if self.norm else x


class PooledHead(nnx.Module):
    """Average over the map, norm, perhaps a hidden layer, dropout, linear: [B, H, W, C] -> [B, num_classes].

    Args:
      dim: channels.
      num_classes: 0 for none: it ends before the last linear map.
      norm: `(dim) -> module`, or None.
      hidden: channels of a hidden layer; None for none.
      act, hidden_norm: its activation, and the norm `(dim) -> module` after it or None.
      drop: rate of the dropout before the last linear map.
      linear: `(din, dout) -> module` for the hidden layer.
      classifier: `(dim, num_classes) -> module` for the last linear map.
      dtype: dtype of the computation.
    """

    def __init__(
        self, dim, num_classes, *, norm=None, hidden=None, act=gelu, hidden_norm=None, drop=0.0, linear=Linear,
        classifier=Linear, dtype=jnp.float32,
    ):  # fmt: skip
        self.drop = drop
        self.norm = norm(dim) if norm else None
        self.pre_logits = Hidden(dim, hidden, act=act, norm=hidden_norm, linear=linear, dtype=dtype) if hidden else None
        self.fc = classifier(hidden or dim, num_classes, dtype=dtype) if num_classes else None

    def __call__(self, x, train=None):
        x = normalise(self.norm, x.mean((1, 2)), train)
        x = self.pre_logits(x) if self.pre_logits else x
        x = dropout(x, self.drop, train)
        return self.fc(x) if self.fc else x
