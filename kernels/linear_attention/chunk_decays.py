"""What decays lie between the tokens of a chunk, and between them and its ends, for use inside a Pallas kernel."""

import jax
import jax.numpy as jnp
from vision_jax.kernels.linear_attention import packed_states
from vision_jax.kernels.packed_heads import MASKED, HeadSum, head_scores


class HeadDecays:
    """The pairs of a chunk of T tokens and their decays, one a head and token; of none, everything is kept.

    Args:
      chunks: the layout.
      ref: the logs in VMEM, [1, 1, heads, T] float32, or None.
      q, k: of the chunk, [1, T, lanes].

    Attributes:
      reading: what the state before the chunk has decayed to when a token reads it, [1, T, lanes], or 1.
      staying: what a token's part of the state has decayed to after the chunk, [1, T, lanes], or 1.
      kept: what the chunk leaves of the state before it, [1, 1, lanes], or 1.
    """

    def __init__(self, chunks, ref, q, k):
        row, column = (jax.lax.broadcasted_iota(jnp.int32, (1, chunks.size, chunks.size), axis) for axis in (1, 2))
        self.heads, self.q, self.k = chunks.heads, q, k
        # whether a token (row) sees another (column): itself and those before; the same without itself, in numbers
        self.seen = (column >= row) if chunks.reverse else (column <= row)
        self.before = jnp.where(self.seen & (column != row), 1.0, 0.0).astype(q.dtype)
        self.logs = []
        if ref is not None:
            self.logs = [jnp.maximum(ref[0, :, h, :][None], MASKED) for h in range(self.heads.in_step)]
        self.reading = self._in_lanes([self._until(head).sum(2, keepdims=True) for head in range(len(self.logs))])
        self.staying = self._in_lanes(
            [jnp.where(self.seen, 0.0, log).sum(2, keepdims=True) for log in self.logs]
        )  # fmt: skip
        self.kept = self._in_lanes([log.sum(2, keepdims=True) for log in self.logs])
        self.factors, self.pairs = {}, {}
        self.dq, self.dk, self.d_logs = HeadSum(self.heads), HeadSum(self.heads), []

    def weights(self, head):
        """q k^T of one head [1, T, T], decayed from column to row, 0 where a column follows its row."""
        if head not in self.pairs:
            self.pairs[head] = self._decayed(head, head_scores(self.heads, self.q, self.k, head))
        return self.pairs[head]

    def pull(self, head, weights, d_weights):
        """Adds what the gradient of one head's weights gives queries and keys; of all heads in order."""
        d_scores = self._decayed(head, d_weights).astype(self.q.dtype)
        self.dq.add(head, d_scores, self.k, ((2,), (1,)))
        self.dk.add(head, d_scores, self.q, ((1,), (1,)))
        if self.logs:  # a log's gradient is the sum of what it decays
            over = packed_states.product(weights * d_weights, self.before, ((2,), (2,)))
            self.d_logs.append(jnp.where(self.seen, over, 0.0).sum(1, keepdims=True))

    def from_pairs(self):
        """What `pull` has added up, (dq, dk), each [1, T, lanes] float32."""
        return self.dq.value(), self.dk.value()

    def gradient(self, ref, reads, writes, carried):
        """Writes the gradient of the logs.

        Args:
          ref: of the shape of the logs.
          reads, writes: [1, T, lanes], a token's reading of the state before times its gradient, and the same of its
            part of that after.
          carried: [1, 1, lanes], the same of what the state before leaves in that after.
        """
        for head, near in enumerate(self.d_logs):
            read, written, left = (packed_states.own_sum(self.heads, head, x) for x in (reads, writes, carried))
            far = jnp.where(self.seen, read, written).sum(1, keepdims=True)
            ref[0, :, head, :] = (near + far + left)[0]

    def read(self, state):
        """What the queries read of the state before the chunk, [1, T, lanes]."""
        return packed_states.apply(self.heads, self.q, state) * self.reading

    def write(self, d_state):
        """The gradient of the values from that of the state after the chunk, [1, T, lanes]."""
        return packed_states.apply(self.heads, self.k, d_state) * self.staying

    def keep(self, state):
        """Decays a state in VMEM by the whole chunk."""
        state[...] = state[...] * self.kept

    def carried(self, state, d_state):
        """What the state before leaves in that after, times its gradient, [1, 1, lanes]."""
        return packed_states.inner(self.heads, state, d_state) * self.kept

    def _decayed(self, head, x):
        if not self.logs:
            return jnp.where(self.seen, x, 0.0)
        if head not in self.factors:
            # the sum of the logs of tokens t, after the column and up to the row
            between = packed_states.product(self._until(head), self.before, ((2,), (1,)))
            self.factors[head] = jnp.exp(jnp.where(self.seen, between, MASKED))
        return x * self.factors[head]

    def _until(self, head):
        return jnp.where(self.seen, self.logs[head], 0.0)

    def _in_lanes(self, logs):
        return jnp.exp(packed_states.spread(self.heads, logs)) if logs else 1.0
