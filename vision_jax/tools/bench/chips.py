"""What accelerators could do at most, and how near to it a program comes."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Greatest rates of one chip: floating-point operations (dense, bfloat16) and bytes of memory, a second."""

    flops: float
    bandwidth: float


# By the start of JAX's `device_kind`, longest first where one starts another. Sources: Google Cloud's pages of the TPU
# versions, NVIDIA's data sheets.
CHIPS = {
    "TPU v6 lite": Chip(918e12, 1640e9),
    "TPU v5 lite": Chip(197e12, 819e9),
    "TPU v5": Chip(459e12, 2765e9),
    "TPU v4": Chip(275e12, 1228e9),
    "NVIDIA H200": Chip(989e12, 4800e9),
    "NVIDIA H100 PCIe": Chip(756e12, 2000e9),
    "NVIDIA H100": Chip(989e12, 3350e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9),
    "NVIDIA A100": Chip(312e12, 1555e9),
    "NVIDIA L4": Chip(121e12, 300e9),
}


def chip_of(device_kind):
    """The chip of a JAX device, or None where it is not known (CPUs are not)."""
    return next((chip for start, chip in CHIPS.items() if device_kind.startswith(start)), None)


def roofline_fraction(chip, seconds, flops, bytes_moved):
    """The least time that the chip needs for so many operations and bytes, over the time taken; 1 is the roof."""
    return max(flops / chip.flops, bytes_moved / chip.bandwidth) / seconds
