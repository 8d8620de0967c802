"""Parts of a map over which the TPU kernel sums the gradients of keys and values on the chip.

The tiles of queries fall into bands; a band's sums cover all keys that its tiles see, so that neighbours overlap by a
window. What a band takes of the chip does not grow with the map. A map that fits is one band.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SUMS = 2**21  # elements of a band, at most: two sums in float32, each held twice, take 32 MiB


class Bands(NamedTuple):
    """One axis cut into bands.

    Attributes:
      of_tile: [tiles], the band of each tile.
      first: [bands], the first key.
      keys: of each band.
    """

    of_tile: np.ndarray
    first: np.ndarray
    keys: int


def choose(axes, size, lanes):
    """The bands of all axes that sum the fewest elements, of those that are small enough.

    Args:
      axes: the planes, rows and columns as the layout has cut them into tiles.
      size: of the map.
      lanes: that a key takes.
    """
    cuts = [_cuts(axis, n) for axis, n in zip(axes, size, strict=True)]
    least = math.prod(min(bands.keys for bands in cut) for cut in cuts)
    room = max(SUMS // lanes, least)
    fitting = (cut for cut in itertools.product(*cuts) if math.prod(bands.keys for bands in cut) <= room)
    return min(fitting, key=lambda cut: math.prod(len(bands.first) * bands.keys for bands in cut))


def _cuts(axis, size):
    """One for each number of bands that there can be."""
    cuts = (_cut(axis, size, tiles) for tiles in range(len(axis.first), 0, -1))
    return list({len(bands.first): bands for bands in cuts}.values())


def _cut(axis, size, tiles):
    """Bands of so many tiles, the last maybe of fewer."""
    of_tile = np.arange(len(axis.first)) // tiles
    first = axis.first[::tiles]
    last = axis.first[np.minimum(np.arange(len(first)) * tiles + tiles, len(axis.first)) - 1]
    keys = int((last - first).max()) + axis.keys
    return Bands(of_tile, np.minimum(first, size - keys), keys)


def join(x, bands, size):
    """The bands' sums [B, bands * planes, rows, columns, C] -> [B, *size, C]: where bands overlap they are added."""
    planes = bands[0].keys
    if x.shape[1] == planes:
        return x
    total = jnp.zeros((len(x), *size, x.shape[-1]), x.dtype)
    for n, first in enumerate(itertools.product(*(axis.first for axis in bands))):
        at = (0, *map(int, first), 0)
        held = jax.lax.dynamic_slice(total, at, (len(x), planes, *x.shape[2:]))
        total = jax.lax.dynamic_update_slice(total, held + x[:, n * planes : (n + 1) * planes], at)
    return total
