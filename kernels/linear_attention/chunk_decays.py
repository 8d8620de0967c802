"""What decays lie between the tokens of a chunk, and between them and its ends, for use inside a Pallas kernel."""

import jax
import jax.numpy as jnp
from vision_jax.kernels.linear_attention import packed_states
from vision_jax.kernels.packed_heads import MASKED


class Decays:
    """The decays of a chunk of T tokens; of none, everything is kept.

    Args:
      chunks: the layout.
      ref: the logs in VMEM, [1, 1, heads, T] float32, or None.
      dtype: of the operands, which decides the precision of products.

    Attributes:
      seen: bool [1, T, T], whether a token (row) sees another (column): itself and those before.
      before: the same without itself, as zeros and ones.
      logs: of each head [1, 1, T].
    """

    def __init__(self, chunks, ref, dtype):
        row, column = (jax.lax.broadcasted_iota(jnp.int32, (1, chunks.size, chunks.size), axis) for axis in (1, 2))
        self.chunks, self.seen = chunks, (column >= row) if chunks.reverse else (column <= row)
        self.before = jnp.where(self.seen & (column != row), 1.0, 0.0).astype(dtype)
        self.logs = []
        if ref is not None:
            self.logs = [jnp.maximum(ref[0, :, h, :][None], MASKED) for h in range(chunks.heads.in_step)]

    def weighted(self, head, *scores):
        """Scores [1, T, T] of one head, decayed from column to row, 0 where a column follows its row."""
        if not self.logs:
            return [jnp.where(self.seen, x, 0.0) for x in scores]
        # the sum of the logs of tokens t, after the column and up to the row
        between = packed_states.product(self._until(head), self.before, ((2,), (1,)))
        weights = jnp.exp(jnp.where(self.seen, between, MASKED))
        return [x * weights for x in scores]

    def reading(self):
        """What the state before the chunk has decayed to when a token reads it, [1, T, lanes], or 1."""
        return self._in_lanes([self._until(head).sum(2, keepdims=True) for head in range(len(self.logs))])

    def staying(self):
        """What a token's part of the state has decayed to after the chunk, [1, T, lanes], or 1."""
        after = [jnp.where(self.seen, 0.0, log).sum(2, keepdims=True) for log in self.logs]
        return self._in_lanes(after)

    def kept(self):
        """What the chunk leaves of the state before it, [1, 1, lanes], or 1."""
        return self._in_lanes([log.sum(2, keepdims=True) for log in self.logs])

    def gradient(self, head, pairs, reads, writes, carried):
        """The gradient of one head's logs, [1, 1, T], as the sums of what each of them decays.

        Args:
          head: which.
          pairs: [1, T, T], each decayed weight times its gradient.
          reads, writes: [1, T, 1], the same of a token's reading of the state before and of its part of that after.
          carried: [1, 1, 1], the same of what the state before leaves in that after.
        """
        over = packed_states.product(pairs, self.before, ((2,), (2,)))
        to_row = jnp.where(self.seen, over + reads, 0.0).sum(1, keepdims=True)
        return to_row + jnp.where(self.seen, 0.0, writes).sum(1, keepdims=True) + carried

    def _until(self, head):
        return jnp.where(self.seen, self.logs[head], 0.0)

    def _in_lanes(self, logs):
        if not logs:
            return 1.0
        out, shape = logs[0], (1, logs[0].shape[1], self.chunks.heads.lanes)
        lane = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
        for head, log in enumerate(logs[1:], 1):
            out = jnp.where(lane >= head * self.chunks.heads.head_dim, log, out)
        return jnp.broadcast_to(jnp.exp(out), shape)
