"""Decays of single channels between the tokens of a chunk, for use inside a Pallas kernel.

Where each channel decays by itself, a pair's weight is no product of a decay and a score: the decay has to go into the
queries and keys. One reference for all pairs of a chunk, as G_i - G_j of running sums, would exponentiate positive
numbers. Gated linear attention cuts chunks into smaller ones (arXiv:2312.06635, section 4.3); here they are halved all
the way: tokens i after j part at one level, where i lies in the right half and j in the left half of a stretch. The
decay between them is that from the middle up to i times that after j up to the middle, each the exponential of a sum
of logs, at most 1. So a level is one product of queries and keys with their decays in them, and a chunk of 128 has 7.
"""

import jax
import jax.numpy as jnp
from vision_jax.kernels.linear_attention import packed_states
from vision_jax.kernels.packed_heads import MASKED, HeadSum


class ChannelDecays:
    """The pairs of a chunk of T tokens and their decays, one a channel of the keys; the interface is `HeadDecays`'.

    Args:
      chunks: the layout.
      logs: [1, T, lanes] float32.
      q, k: of the chunk, [1, T, lanes].
    """

    def __init__(self, chunks, logs, q, k):
        T = chunks.size
        shapes = ((1, T, 1), 1), ((1, T, T), 1), ((1, T, T), 2)
        places = [jax.lax.broadcasted_iota(jnp.int32, *shape) for shape in shapes]
        token, row, column = [T - 1 - place for place in places] if chunks.reverse else places
        self.heads, self.dtype, self.same = chunks.heads, q.dtype, row == column
        self.q, self.k = (x.astype(jnp.float32) for x in (q, k))
        self.logs = jnp.maximum(logs, MASKED)
        self.until, self.after = self._ones(column <= row), self._ones(column > row)
        self.reading, self.staying = jnp.exp(self._sum(self.until)), jnp.exp(self._sum(self.after))
        self.kept = jnp.exp(self.logs.sum(1, keepdims=True))
        self.levels = [self._level(token, row, column, bit) for bit in range((T - 1).bit_length())]
        self.d_weights, self.d_logs = [], 0.0

    def _level(self, token, row, column, bit):
        """(tokens on the right [1, T, 1], pairs that part here, summed logs as ones, decays, decayed queries or keys).

        A token has one part at a level: on the right it is a query, on the left a key.
        """
        on_right, half, other = (jax.lax.shift_right_logical(x, bit) for x in (token, row, column))
        on_right, right = (on_right & 1) == 1, (half & 1) == 1
        before, pairs = column <= row, right & (other == half - 1)
        stretch = self._ones((half == other) & ((right & before) | ~(right | before)))
        decays = jnp.exp(self._sum(stretch))
        return on_right, pairs, stretch, decays, jnp.where(on_right, self.q, self.k) * decays

    def weights(self, head):
        """As `HeadDecays.weights`."""
        own = packed_states.own_sum(self.heads, head, self.q * self.k)
        weights = jnp.where(self.same, own, 0.0)
        for _, pairs, _, _, x in self.levels:
            scores = packed_states.scores(self.heads, x, x.astype(self.dtype), head)
            weights = jnp.where(pairs, scores, weights)
        return weights

    def pull(self, head, weights, d_weights):
        """As `HeadDecays.pull`."""
        self.d_weights.append(d_weights)

    def from_pairs(self):
        """As `HeadDecays.from_pairs`."""
        own = [jnp.where(self.same, x, 0.0).sum(2, keepdims=True) for x in self.d_weights]
        own = packed_states.spread(self.heads, own)
        dq, dk = own * self.k, own * self.q
        for right, pairs, stretch, decays, x in self.levels:
            total, narrow = HeadSum(self.heads), x.astype(self.dtype)
            for head, d_weights in enumerate(self.d_weights):
                d_scores = jnp.where(pairs, d_weights, 0.0).astype(self.dtype)
                total.add(head, d_scores, narrow, ((2,), (1,)))
                total.add(head, d_scores, narrow, ((1,), (1,)))
            d_x = total.value()
            self.d_logs = self.d_logs + self._sum_back(stretch, d_x * x)
            dq, dk = dq + jnp.where(right, d_x * decays, 0.0), dk + jnp.where(right, 0.0, d_x * decays)
        return dq, dk

    def gradient(self, ref, reads, writes, carried):
        """As `HeadDecays.gradient`, after `from_pairs`."""
        ref[...] = self.d_logs + self._sum_back(self.until, reads) + self._sum_back(self.after, writes) + carried

    def read(self, state):
        """As `HeadDecays.read`."""
        return packed_states.apply(self.heads, self.q * self.reading, state)

    def write(self, d_state):
        """As `HeadDecays.write`."""
        return packed_states.apply(self.heads, self.k * self.staying, d_state)

    def keep(self, state):
        """As `HeadDecays.keep`."""
        packed_states.scale_rows(self.heads, state, self.kept)

    def carried(self, state, d_state):
        """As `HeadDecays.carried`."""
        return packed_states.inner_rows(self.heads, state, d_state) * self.kept

    def _ones(self, condition):
        return jnp.where(condition, 1.0, 0.0).astype(self.dtype)

    def _sum(self, ones):
        """The logs of the tokens (columns) that belong to each token (row), summed."""
        return packed_states.product(ones, self.logs, ((2,), (1,)))

    def _sum_back(self, ones, x):
        """The transpose of `_sum`."""
        return packed_states.product(ones, x, ((1,), (1,)))
