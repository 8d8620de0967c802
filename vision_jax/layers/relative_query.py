"""What the scores of queries and keys gain from their relative positions, as each query weighs them."""

import functools

import numpy as np
from flax import nnx

from vision_jax.parameters import Normal, param


class RelativeQueryBias(nnx.Module):
    """A vector for the key's position minus the query's along each axis: the `query_bias` of `window_attention`.

    Attention augmented convolution (Bello et al., 2019, arXiv:1904.09925, section 3.2.2), in BoTNet and HaloNet. Called
    it gives the vectors of each query and key, [rows, key rows, key_dim] and [columns, key columns, key_dim].

    Positions are counted from the first query and the first key, as in the released code: with a halo, or with strided
    queries, both ends of the tables differ in how far they reach.

    Args:
      queries, keys: (rows, columns) of each.
      key_dim: channels of a head's queries.
    """

    def __init__(self, queries, keys, key_dim):
        self.queries, self.keys = tuple(queries), tuple(keys)
        init = Normal(key_dim**-0.5, limit=2.0)
        self.height_rel = param((2 * self.keys[0] - 1, key_dim), init)
        self.width_rel = param((2 * self.keys[1] - 1, key_dim), init)

    def __call__(self):
        tables = (self.height_rel[...], self.width_rel[...])
        return tuple(t[key_minus_query(n, m)] for t, n, m in zip(tables, self.queries, self.keys, strict=True))


@functools.cache
def key_minus_query(queries, keys):
    """The row of a table for each query and key, int32 [queries, keys]."""
    return (np.arange(keys) - np.arange(queries)[:, None] + keys - 1).astype(np.int32)
