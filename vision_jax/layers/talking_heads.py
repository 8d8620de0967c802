"""Heads of attention that talk to each other."""

import jax.numpy as jnp

from vision_jax.layers.linear import Linear, PointwiseConv


class TalkingHeads(Linear):
    """A linear map over the heads of scores or probabilities, [B, heads, Nq, Nk] -> [B, heads, Nq, Nk].

    Talking-heads attention (Shazeer et al., 2020, arXiv:2003.02436).
    """

    def __call__(self, x):
        y = jnp.einsum("bhqk,hg->bgqk", x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[:, None, None]


class TalkingHeadsConv(TalkingHeads, PointwiseConv):
    """The same; weight files hold a 1x1 convolution."""
