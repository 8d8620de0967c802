"""Dropout and stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np


def dropout(x, rate, train):
    """Zeroes elements with probability `rate` and divides the others by 1 - rate (Srivastava et al., 2014); any shape.

    A rate of zero still takes its key, so that switching one dropout off changes no other.
    """
    if not train:
        return x
    key = train.key()
    if not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def drop_path(x, train, share=1.0):
    """Drops a residual branch of whole examples, x [B, ...] (stochastic depth: Huang et al., 2016, arXiv:1603.09382).

    The rate is the block's, `train.drop_path_rate`: the stack that runs the blocks hands it out; or a `share` of it.
    What is kept is divided by 1 - rate. A rate of zero still takes its key.
    """
    if not train:
        return x
    key, rate = train.key(), train.drop_path_rate * share
    if isinstance(rate, float) and not rate:
        return x
    keep_rate = np.float32(1) - (np.float32(rate) if isinstance(rate, float) else rate)  # the same bits as under scan
    keep = jax.random.bernoulli(key, keep_rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / keep_rate, 0).astype(x.dtype)


def linear_rates(rate, depths):
    """Drop-path rates growing linearly from 0 to `rate` over all blocks (timm's rule), a tuple a stage."""
    flat = np.linspace(0, rate, sum(depths)).tolist()
    ends = np.cumsum(depths).tolist()
    return tuple(tuple(flat[end - depth : end]) for depth, end in zip(depths, ends, strict=True))
