"""How the TPU kernel of the causal form cuts tokens into chunks, one a grid step."""

import dataclasses

from vision_jax.kernels import tile_table
from vision_jax.kernels.packed_heads import Heads

CHUNK = 128  # tokens: their pairs fill the matrix unit, and 256 take more bundles a token on v5e and v5p
CANDIDATES = (128, 256, 512)  # whole registers of lanes, on which the decays' tokens lie


def largest(heads):
    """Tokens of a chunk, at most."""
    return tile_table.choose("causal_linear_attention.tpu", (heads.head_dim,), CHUNK, lambda: CANDIDATES)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The layout of a call.

    Attributes:
      batch, tokens, heads: of one device's operands.
      reverse: whether the state runs from the last token to the first.
      returns_state: whether the state after all tokens is a result.
      normalized: whether the result is divided by the sum of the weights, and `epsilon`.
      size: tokens of a chunk.
    """

    batch: int
    tokens: int
    heads: Heads
    reverse: bool
    returns_state: bool
    normalized: bool = False
    epsilon: float = 0.0
    size: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "size", min(largest(self.heads), self.tokens))

    @property
    def count(self):
        """Chunks of an image."""
        return -(-self.tokens // self.size)

    @property
    def padded(self):
        """Tokens that the chunks cover."""
        return self.count * self.size

    @property
    def has_tail(self):
        """Whether the last chunk reaches beyond the tokens."""
        return self.padded > self.tokens

    @property
    def grid(self):
        """(blocks of lanes, images, chunks)."""
        return (self.heads.steps, self.batch, self.count)

    def chunk(self, step, backward):
        """Which chunk a step takes: the backward pass goes against the state's direction."""
        return self.count - 1 - step if self.reverse != backward else step
