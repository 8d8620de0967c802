"""What a compiled program moves between devices, and how long the links of a slice need for it at least."""

import math
import re
from typing import NamedTuple

import numpy as np

from vision_jax.parallel.chips import wraps

# Bytes that a device receives at least, of n in a group, for each byte of the whole array.
RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
      kind: a key of `RECEIVED`.
      shapes: dimensions of the arrays, whole on each device of the group.
      received: bytes that a device receives each time.
      group: numbers of the devices that take part together, of the first group.
      times: how often a step runs it.
      source: the operation that it stems from.
    """

    kind: str
    shapes: tuple
    received: float
    group: tuple
    times: int
    source: str


def collectives(program, devices):
    """The collectives of a `hlo.Program` for so many devices; asynchronous ones count where they start."""
    starts = {
        name
        for instruction, name, _ in program.instructions()
        if "AsyncCollectiveStart" in instruction.attributes or instruction.opcode.endswith("-start")
    }
    found = []
    for instruction, name, times in program.instructions():
        kind, _, start = instruction.opcode.partition("-start")
        if kind not in RECEIVED or start:
            continue
        if "chain_id=" in instruction.attributes and name not in starts:
            continue  # a piece of one that has begun elsewhere, run beside other work
        shapes = instruction.shapes
        if instruction.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, ...)
            half = len(shapes) // 2 if kind == "all-gather" else 1
            shapes = shapes[half : 2 * half]
        group = _group(instruction.attributes, devices)
        size = sum(shape.size for shape in shapes)
        if kind == "reduce-scatter":
            size *= len(group)
        elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # TPUs: one fusion, half of the traffic
            kind = "reduce-scatter"
        source = instruction.attribute(r'op_name="([^"]*)"') or ""
        dims = tuple(shape.dims for shape in shapes)
        found.append(Collective(kind, dims, size * RECEIVED[kind](len(group)), group, times, source))
    return found


def between_slices(program):
    """The collectives over the network between slices: each device's part, after its own slice has done its own.

    The compiler makes of them a transfer to the host and one back, the rest being the runtime's.
    """
    found = {}
    for instruction, _, times in program.instructions():
        key = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        if key is None or instruction.opcode not in ("send", "recv"):
            continue
        kind, slices = _KINDS.get(key, "collective-permute"), instruction.attribute(r'_target="\{([\d,]+)\}')
        group = tuple(range(len(slices.split(",")) if slices else 2))
        shape, name = instruction.shapes[0], instruction.attribute(r'_host_transfer_rendezvous="([^"]*)"')
        received = shape.size * RECEIVED[kind](len(group))
        if name not in found or found[name].received < received:  # of what goes out and what comes in the whole
            found[name] = Collective(kind, (shape.dims,), received, group, times, name)
    return list(found.values())


_KINDS = {kind.upper().replace("-", "_"): kind for kind in RECEIVED}


def _group(attributes, devices):
    """The numbers of the devices of the first group."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        groups, dims, order = (tuple(map(int, part.split(","))) if part else None for part in iota.groups())
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return tuple(map(int, ids.reshape(groups)[0]))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'(?!:)", mesh[2])
        if len(axes) == mesh[2].count("'") // 2 and "device_ids" not in mesh[0]:
            ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
            first = ids[tuple(slice(None) if axis in axes else 0 for axis in sizes)]
            return tuple(map(int, first.ravel()))
    return tuple(range(devices))


def link_bandwidth(chip, coordinates, grid):
    """Bytes a second that the worst-placed chip of a group can receive; infinite within one chip.

    A chip at the end of a line receives over one link of that dimension, one of a ring over two. What other groups send
    over the same links at the same time is not taken off.

    Args:
      chip: a TPU.
      coordinates: of the group's chips.
      grid: chips of the slice along each dimension.
    """
    links = 0
    for positions, size, ring in zip(zip(*coordinates, strict=True), grid, wraps(chip, grid), strict=True):
        held = len(set(positions))
        links += (2 if ring and held == size else 1) if held > 1 else 0
    return links * chip.link if links else math.inf


def seconds(found, chip, coordinates, grid):
    """The time for all collectives of a step, one after the other.

    Args:
      found: what `collectives` found.
      chip: a TPU.
      coordinates: of each device's chip, by the device's number.
      grid: chips of the slice along each dimension.
    """
    return sum(c.times * c.received / link_bandwidth(chip, [coordinates[i] for i in c.group], grid) for c in found)
