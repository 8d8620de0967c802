"""Attention of heads that lie side by side in the lanes of a TPU's registers.

A head of 32 channels fills a quarter of a register's 128 lanes and of the matrix unit's depth. Slicing heads out would
move data; instead the other heads' lanes are multiplied by zero, and a product over all lanes gives what the head alone
would. The functions are for use inside a Pallas kernel; n counts windows or images that are computed at once.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

LANES = 128  # of a vector register: the last dimension of an array lies on them
MASKED = -1e30  # a score that the softmax drops; finite, because infinities would meet and give NaN


@dataclasses.dataclass(frozen=True)
class Heads:
    """How heads are laid out in the last dimension of a map [B, H, W, C]."""

    count: int
    head_dim: int

    @property
    def channels(self):
        """C, of all heads."""
        return self.count * self.head_dim

    @property
    def lanes(self):
        """Channels of a grid step: whole heads in blocks of 128 lanes where those tile the channels, else all."""
        lanes = math.lcm(LANES, self.head_dim)
        return lanes if self.channels % lanes == 0 else self.channels

    @property
    def in_step(self):
        """Heads of a grid step."""
        return self.lanes // self.head_dim

    @property
    def steps(self):
        """Grid steps over the channels."""
        return self.channels // self.lanes

    @property
    def padded(self):
        """Lanes that a step's block takes in VMEM: whole registers."""
        return -(-self.lanes // LANES) * LANES

    def first_lane(self, step):
        """Where a step's channels begin, for a block that is placed by its elements."""
        return step * self.lanes if self.steps > 1 else 0

    def tiles(self, head):
        """The registers that hold a head's channels: [(lanes as a slice, 0/1 row, or None where all are its own)]."""
        first, last = head * self.head_dim, (head + 1) * self.head_dim
        out = []
        for start in range(first // LANES * LANES, last, LANES):
            stop = min(start + LANES, self.lanes)
            lane = start + jax.lax.broadcasted_iota(jnp.int32, (1, 1, stop - start), 2)
            whole = first <= start and stop <= last
            out.append((slice(start, stop), None if whole else jnp.where((lane >= first) & (lane < last), 1.0, 0.0)))
        return out


def dot(a, b, contract, batch=((), ())):
    """A product accumulated in float32; of float32 operands in full, which the matrix unit does only when asked."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (contract, batch), precision=precision, preferred_element_type=jnp.float32)


def head_scores(heads, a, b, head):
    """a b^T of one head, [n, N, lanes] and [n, M, lanes] -> [n, N, M]."""
    tiles = heads.tiles(head)
    return sum(dot(_own(a, lanes, own), b[:, :, lanes], ((2,), (2,)), ((0,), (0,))) for lanes, own in tiles)


def softmax(scores, masked):
    """Over the last axis: (weights not yet normalised, the factor that normalises them, the log-sum-exp).

    Args:
      scores: [n, N, M], `MASKED` or less where a key is not seen.
      masked: whether a query may see no key: its weights are then 0, not those of a softmax over dropped scores.
    """
    top = jnp.max(scores, -1, keepdims=True)
    if masked:
        top = jnp.maximum(top, MASKED / 2)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, -1, keepdims=True)
    if masked:
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    return weights, 1.0 / total, top + jnp.log(total)


class HeadSum:
    """A result [n, N, lanes] in float32 to which heads add their lanes."""

    def __init__(self, heads):
        self.heads, self.tiles = heads, dict.fromkeys(range(0, heads.lanes, LANES))

    def add(self, head, weights, x, contract, factor=None):
        """Adds weights x of one head, contracted over an axis of each as `dot` takes it; times `factor` if given."""
        for lanes, own in self.heads.tiles(head):
            part = dot(weights, _own(x, lanes, own), contract, ((0,), (0,)))
            part = part if factor is None else part * factor
            held = self.tiles[lanes.start]
            self.tiles[lanes.start] = part if held is None else held + part

    def value(self):
        """The sum."""
        return jnp.concatenate(list(self.tiles.values()), -1) if len(self.tiles) > 1 else self.tiles[0]


def _own(x, lanes, own):
    """A register's lanes of x, other heads' zero. By a product: Mosaic has no select on odd rows of bfloat16."""
    return x[:, :, lanes] if own is None else x[:, :, lanes] * own.astype(x.dtype)


def transposed(x):
    """A column [n, N, 1] -> a row [n, 1, N], or the other way: Mosaic moves a sum where it has no transposition."""
    N = max(x.shape[1:])
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (1, N, N), axis) for axis in (1, 2))
    return jnp.where(row == column, x, 0.0).sum(1 if x.shape[2] == 1 else 2, keepdims=True)


def concatenate(rows):
    """Rows put together, [r, lanes] each."""
    return jnp.concatenate(rows, 0) if len(rows) > 1 else rows[0]
