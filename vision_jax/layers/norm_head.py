"""Classifiers with a batch norm of their own, which disappears for deployment."""

import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv_norm import norm_before
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm


class NormHead(nnx.Module):
    """A batch norm, dropout and a linear map, [B, C] -> [B, num_classes]."""

    def __init__(self, dim, num_classes, *, drop=0.0, dtype=jnp.float32):
        self.drop, self.bn, self.fc = drop, BatchNorm(dim, dtype=dtype), Linear(dim, num_classes, dtype=dtype)

    def __call__(self, x, train=None):
        return self.fc(dropout(self.bn(x, train) if self.bn else x, self.drop, train))

    def reparameterize(self):
        """Leaves the linear map."""
        if self.bn:
            norm_before([self.bn], self.fc)
            self.bn = None


class PooledNormHeads(nnx.Module):
    """Average over the map, then a `NormHead`, or two for the labels and a teacher's: [B, H, W, C] -> [B, num_classes].

    Of two heads training gives the pair, evaluation the mean.

    Args:
      dim: channels.
      num_classes: 0 for none: the features [B, C].
      distilled: whether there are two.
      drop, norm_drop: dropout before and after the norms.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, num_classes, *, distilled, drop=0.0, norm_drop=0.0, dtype=jnp.float32):
        self.drop = drop
        self.head, self.head_dist = (
            NormHead(dim, num_classes, drop=norm_drop, dtype=dtype) if num_classes and there else None
            for there in (True, distilled)
        )

    def __call__(self, x, train=None):
        x = dropout(x.mean((1, 2)), self.drop, train)
        if not self.head_dist:
            return self.head(x, train) if self.head else x
        labels, teacher = self.head(x, train), self.head_dist(x, train)
        return (labels, teacher) if train else (labels + teacher) / 2
