"""The feed-forward network that sees its neighbours."""

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import gelu
from vision_jax.parameters import kaiming_normal


class DepthwiseMlp(nnx.Module):
    """A 3x3 depthwise convolution between the linear maps, [B, H, W, C] -> [B, H, W, C].

    PVT v2 (Wang et al., 2022, arXiv:2106.13797, section 3.3); its zero padding tells positions apart.

    Args:
      dim, hidden: channels outside and inside.
      act: activation after the convolution.
      relu: a ReLU before the convolution too.
      drop: dropout after the activation and of the result.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, hidden, *, act=gelu, relu=False, drop=0.0, dtype=jnp.float32):
        self.act, self.relu, self.drop = act, relu, drop
        self.fc1, self.fc2 = Linear(dim, hidden, dtype=dtype), Linear(hidden, dim, dtype=dtype)
        # the hidden channels are split as fc1's kernel is
        self.dwconv = Conv(hidden, hidden, 3, groups=hidden, split=True, init=kaiming_normal, dtype=dtype)

    def __call__(self, x, train=None):
        x = self.fc1(x)
        x = self.dwconv(jax.nn.relu(x) if self.relu else x)
        return dropout(self.fc2(dropout(self.act(x), self.drop, train)), self.drop, train)
