"""How the TPU kernel of the non-causal form cuts tokens into grid steps, and which calls it takes."""

import dataclasses
import functools
import math

import jax.numpy as jnp
from vision_jax.kernels import tile_table
from vision_jax.kernels.limits import largest_divisor
from vision_jax.kernels.packed_heads import Heads

TILE = 2**17  # elements of a block: 1,024 tokens of 128 lanes; ten blocks, held twice, take 10 MiB in float32
IMAGES = 8  # of a step, at most: more spill registers
SUBLANES = 16  # tokens of a register of bfloat16, of which a block of some of the tokens is a multiple
CANDIDATES = (256, 512, 1024, 2048, 4096)  # tokens of a tile that tuning tries
BLOCKS = 10  # of a step of the backward pass


def rotates(tokens, row, heads):
    """Whether tiles can take whole rows of a map, for the kernel to rotate; all tokens are one row along one axis."""
    most = TILE // heads.padded
    return tokens <= most or _unit(row) <= most


def _unit(row):
    """What the tokens of a tile are a multiple of."""
    return math.lcm(SUBLANES, row or 1)


@dataclasses.dataclass(frozen=True)
class TokenTiles:
    """The layout of a call: a grid step takes a tile of the tokens of `step_images` images, [images, tile, lanes].

    `row`: tokens of a row of the map, where the kernel rotates: a tile then takes whole rows. `tile`: tokens of a tile,
    all, or a divisor, or what leaves a tail.
    """

    batch: int
    tokens: int
    heads: Heads
    row: int = 0
    tile: int = dataclasses.field(init=False)

    def __post_init__(self):
        call = (self.tokens, self.heads.head_dim, self.row)[: 2 + (self.row > 0)]
        tile = tile_table.choose("linear_attention.tpu", call, self._rule(), self._candidates)
        object.__setattr__(self, "tile", tile)

    def _candidates(self):
        parts = [n for n in CANDIDATES if n < self.tokens and n % (self.row or 1) == 0]
        return parts + [self.tokens] * (self.tokens <= CANDIDATES[-1])

    def _rule(self):
        most = TILE // self.heads.padded
        if self.tokens <= most:
            return self.tokens
        unit = _unit(self.row)
        most -= most % unit
        divisors = (n for n in range(most, most // 4, -unit) if self.tokens % n == 0)
        return next(divisors, most // 2 // unit * unit or unit)

    @property
    def rows(self):
        """Rows of a tile."""
        return self.tile // self.row

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

    def vmem(self, itemsize):
        """Bytes that a step of the backward pass takes: its blocks twice, because the next are fetched meanwhile."""
        tables = 2 * (8 * self.rows + self.row) * 4 if self.row else 0  # a row lies in the 8 of a register
        return 2 * self.heads.padded * (BLOCKS * self.step_images * self.tile * itemsize + tables)

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
