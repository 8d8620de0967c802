"""What accelerators can do at most: arithmetic, memory, links between chips."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip's greatest rates and its memory.

    Attributes:
      flops: floating-point operations a second, dense, bfloat16.
      bandwidth: of its memory, bytes a second.
      memory: bytes.
      link: bytes a second over one link to a neighbouring chip, in one direction; 0 where there is no such grid.
      dimensions: of the grid or torus of chips, each with two links.
      network: bytes a second of the data centre's network that joins slices; 0 where no figure is published.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float = 0.0
    dimensions: int = 0
    network: float = 0.0


GIB = 2**30

# By the start of JAX's `device_kind`, longest first where one starts another. Sources: Google Cloud's pages of the TPU
# versions (docs.cloud.google.com/tpu/docs/v5e and so on), whose "bidirectional interconnect bandwidth per chip" is
# that of both directions of all links, and "data center network bandwidth per chip" (v5e's pages give it for a pod of
# 256); NVIDIA's data sheets.
CHIPS = {
    "TPU7x": Chip(2307e12, 7380e9, 192 * GIB, 100e9, 3, 12.5e9),
    "TPU v6 lite": Chip(918e12, 1638e9, 32 * GIB, 100e9, 2, 12.5e9),
    "TPU v5 lite": Chip(197e12, 819e9, 16 * GIB, 50e9, 2, 3.125e9),
    "TPU v5": Chip(459e12, 2765e9, 95 * GIB, 100e9, 3, 6.25e9),
    "TPU v4": Chip(275e12, 1228e9, 32 * GIB, 50e9, 3),
    "NVIDIA H200": Chip(989e12, 4800e9, 141e9),
    "NVIDIA H100 PCIe": Chip(756e12, 2000e9, 80e9),
    "NVIDIA H100": Chip(989e12, 3350e9, 80e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9, 80e9),
    "NVIDIA A100": Chip(312e12, 1555e9, 40e9),
    "NVIDIA L4": Chip(121e12, 300e9, 24e9),
}


def chip_of(device_kind):
    """The chip of a JAX device's kind, or None where it is not known (CPUs are not)."""
    return next((chip for start, chip in CHIPS.items() if device_kind.startswith(start)), None)


def wraps(chip, grid):
    """For each dimension of a slice, whether its ends are linked: of whole cubes of 4x4x4; of a flat slice's 16 rows.

    Args:
      chip: a TPU.
      grid: chips along each dimension.
    """
    if chip.dimensions == 3:
        return (all(size % 4 == 0 for size in grid),) * len(grid)
    return tuple(size == 16 for size in grid)


def roofline_fraction(chip, seconds, flops, bytes_moved):
    """The least time that the chip needs for so many operations and bytes, over the time taken; 1 is the roof."""
    return max(flops / chip.flops, bytes_moved / chip.bandwidth) / seconds
