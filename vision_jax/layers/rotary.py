"""Rotary position embedding: queries and keys turned by angles that grow with their positions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.kernels.rotation import grid_angles, rotate
from vision_jax.parameters import param


@functools.cache
def axial_angles(height, width, frequencies):
    """Angles of a grid's tokens, row by row, float64 [height * width, 2 len(frequencies)].

    The first half is the row times each frequency, the second half the column.

    Args:
      height, width: the grid, in tokens.
      frequencies: radians a token, a tuple.
    """
    return grid_angles([axis_angles(size, frequencies) for size in (height, width)])


def axis_angles(size, frequencies):
    """Angles of the places along one axis, float64 [size, len(frequencies)]."""
    return np.outer(np.arange(size), frequencies)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Turns queries or keys [B, prefix + N, heads, head_dim] by their patches' places in a grid.

    A quarter of the channels' pairs each for one axis and its frequencies, temperature ** -(i / (head_dim / 4)).

    Attributes:
      grid: (rows, columns) of the patches; they have N = rows * columns tokens.
      prefix: tokens before the patches, which are not turned.
      temperature: the lowest frequency's inverse, but for one step.
      reference: side of a square grid on which the places are scaled, so that a larger one has places in between
        (EVA-02: Fang et al., 2023, arXiv:2303.11331), or None.
      offset: added to every place before that.
      columns_first: the columns' angles come before the rows'.
      centred: places from -1 to 1, in turns, whatever the grid (DINOv3: Simeoni et al., 2025, arXiv:2508.10104).
      halves: pairs are channels half of head_dim apart, not neighbours.
    """

    grid: tuple
    prefix: int = 0
    temperature: float = 10_000.0
    reference: int | None = None
    offset: float = 0.0
    columns_first: bool = False
    centred: bool = False
    halves: bool = False

    def __call__(self, x, factor=1.0):
        """Queries or keys, and what all places are multiplied by, a number or a scalar array -> the same."""
        turned = rotate(x[:, self.prefix :], factor * self.angles(x.shape[-1]), halves=self.halves)
        return jnp.concatenate([x[:, : self.prefix], turned], axis=1) if self.prefix else turned

    @functools.cache
    def angles(self, head_dim):
        """[N, head_dim / 2], float64, row by row."""
        frequencies = self.temperature ** -(np.arange(head_dim // 4) / (head_dim // 4))
        places = np.meshgrid(*(self._places(n) for n in self.grid), indexing="ij")
        places = places[::-1] if self.columns_first else places
        return np.concatenate([axis.reshape(-1, 1) * frequencies for axis in places], axis=1)

    def _places(self, n):
        """Of the patches along an axis of so many."""
        places = np.arange(n) + self.offset
        if self.centred:
            return 2 * np.pi * ((2 * places + 1) / n - 1)
        return places if self.reference is None else places / n * self.reference


def random_factor(train, most):
    """One number for all places of a batch, between 1 / most and most, log-uniform; [] in float32.

    So a model learns many scales of its grid (DINOv3, arXiv:2508.10104: "box jittering").
    """
    return jnp.exp(jax.random.uniform(train.key(), (), jnp.float32, -np.log(most), np.log(most)))


@dataclasses.dataclass(frozen=True)
class MixedRotary:
    """The same by learned frequencies, which mix both axes: the angle is column * f_x + row * f_y.

    RoPE-Mixed (Heo et al., 2024, arXiv:2403.13298). Called with queries or keys and a block's frequencies,
    [2, heads, head_dim / 2], those of the column first.

    Attributes:
      grid, prefix: as in `Rotary`.
    """

    grid: tuple
    prefix: int = 0

    def __call__(self, x, frequencies):
        rows, columns = (axis.reshape(-1, 1, 1) for axis in np.mgrid[: self.grid[0], : self.grid[1]])
        frequencies = frequencies.astype(jnp.promote_types(x.dtype, jnp.float32))
        turned = rotate(x[:, self.prefix :], columns * frequencies[0] + rows * frequencies[1])
        return jnp.concatenate([x[:, : self.prefix], turned], axis=1) if self.prefix else turned


class MixedFrequencies(nnx.Module):
    """The frequencies of all blocks, [2, depth, heads, head_dim / 2]: () -> [depth, 2, heads, head_dim / 2]."""

    def __init__(self, depth, num_heads, head_dim, temperature):
        self.freqs = param((2, depth, num_heads, head_dim // 2), TurnedAxes(temperature))

    def __call__(self):
        return self.freqs[...].swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class TurnedAxes:
    """An initialiser for them: those of `Rotary`, but along two axes that each head of each block turns at random."""

    temperature: float

    def __call__(self, draw, shape):
        half = shape[-1] // 2
        magnitudes, none = self.temperature ** -(np.arange(half) / half), np.zeros(half)
        direction = draw.normal((2, *shape[1:-1], 1))  # of the first axis; normals point everywhere alike
        cos, sin = direction / (direction**2).sum(0) ** 0.5
        along, across = ([magnitudes, none], [none, magnitudes]), ([none, -magnitudes], [magnitudes, none])
        along, across = (np.array(a, np.float32).reshape(2, 1, 1, -1) for a in (along, across))
        return cos * along + sin * across
