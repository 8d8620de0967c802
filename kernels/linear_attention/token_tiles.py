"""How the TPU kernel of the non-causal form cuts tokens into grid steps, and which calls it takes."""

import dataclasses
import functools

import jax.numpy as jnp
from vision_jax.kernels.limits import largest_divisor
from vision_jax.kernels.packed_heads import Heads

TILE = 2**17  # elements of a block: 1,024 tokens of 128 lanes; ten blocks, held twice, take 10 MiB in float32
IMAGES = 8  # of a step, at most: more spill registers
SUBLANES = 16  # tokens of a register of bfloat16, of which a block of some of the tokens is a multiple


@dataclasses.dataclass(frozen=True)
class TokenTiles:
    """The layout of a call: a grid step takes a tile of the tokens of `step_images` images, [images, tile, lanes]."""

    batch: int
    tokens: int
    heads: Heads

    @functools.cached_property
    def tile(self):
        """Tokens of a tile: all, or a divisor, or what leaves a tail."""
        most = TILE // self.heads.padded
        if self.tokens <= most:
            return self.tokens
        most -= most % SUBLANES
        divisors = (n for n in range(most, most // 4, -SUBLANES) if self.tokens % n == 0)
        return next(divisors, most // 2)

    @property
    def tiles(self):
        """Tiles of an image."""
        return -(-self.tokens // self.tile)

    @property
    def has_tail(self):
        """Whether the last tile reaches beyond the tokens."""
        return self.tokens % self.tile > 0

    @functools.cached_property
    def step_images(self):
        """Images of a step: several, where one is small."""
        return largest_divisor(self.batch, min(IMAGES, TILE // (self.tile * self.heads.padded)))

    @property
    def block(self):
        """Shape of a step's part of a tensor [B, N, C]."""
        return (self.step_images, self.tile, self.heads.lanes)

    def grid(self, phases):
        """(blocks of lanes, steps over the batch, phases, tiles): each phase goes through the tokens once."""
        return (self.heads.steps, self.batch // self.step_images, phases, self.tiles)

    def block_index(self, used):
        """Where a tensor's blocks lie in the grid: in a phase that does not use them the last one stays where it is.

        Args:
          used: for each phase whether the tensor is read or written in it.

        Returns:
          A function of the grid's indices.
        """

        def index(group, images, phase, tile):
            place, held = None, 0
            for n, here in enumerate(used):
                now, held = (tile, self.tiles - 1) if here else (held, held)
                place = now if place is None else jnp.where(phase >= n, now, place)
            return (images, place, group)

        return index
