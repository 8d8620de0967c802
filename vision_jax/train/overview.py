"""The table of a model's parameters."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from vision_jax.names import STACKED, any_block, dotted


@dataclasses.dataclass
class _Row:
    """Arrays of one shape under one pattern of names."""

    name: str
    shape: tuple
    dtype: str
    placed: str
    arrays: int
    count: int
    size: int
    size_a_device: int
    total: float = math.nan
    total_of_squares: float = math.nan

    def join(self, other):
        for field in ("arrays", "count", "size", "size_a_device", "total", "total_of_squares"):
            setattr(self, field, getattr(self, field) + getattr(other, field))


def parameter_overview(params, shardings=None, *, stats=False, max_rows=40):
    """The parameters as a table: name, shape, type, number, and where given placement, mean and standard deviation.

    Args:
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      shardings: a tree like it of `NamedSharding`; by default the leaves' own, where they have one.
      stats: whether to compute mean and standard deviation (needs arrays).
      max_rows: beyond so many rows, names that differ only in the numbers of blocks and stages, and have the same
        shape, share one: `blocks.*.mlp.fc1.kernel`. Stacked blocks always do.

    Returns:
      The table, several lines, with the total number of parameters and bytes at the end.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    placements = (
        [getattr(leaf, "sharding", None) for _, leaf in leaves] if shardings is None else jax.tree.leaves(shardings)
    )
    rows = [_row(path, leaf, placed, stats) for (path, leaf), placed in zip(leaves, placements, strict=True)]
    if len(rows) > max_rows:
        rows = _grouped(rows)
    sharded = any(row.placed for row in rows)
    header = ["name", "shape", "type", "parameters"] + ["placed"] * sharded + ["mean", "std"] * stats
    lines = [header] + [_cells(row, sharded, stats) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {"parameters", "mean", "std"}
    lines = [
        "  ".join(
            c.rjust(w) if h in right else c.ljust(w) for c, w, h in zip(cells, widths, header, strict=True)
        ).rstrip()
        for cells in lines
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    total = f"total: {sum(r.count for r in rows):,} parameters, {_bytes(sum(r.size for r in rows))}"
    if sharded:
        total += f", {_bytes(sum(r.size_a_device for r in rows))} a device"
    return "\n".join([*lines, total])


def _row(path, leaf, sharding, stats):
    parts = dotted(path).split(".")
    stacked = STACKED in parts
    name = any_block(parts)
    arrays, shape = (leaf.shape[0], leaf.shape[1:]) if stacked else (1, leaf.shape)
    count, itemsize, placed, held = math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize, "", leaf.shape
    if isinstance(sharding, NamedSharding):
        axes = ["+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in tuple(sharding.spec)[stacked:]]
        placed = f"({', '.join(axes)})" if any(axis != "-" for axis in axes) else "replicated"
        held = sharding.shard_shape(tuple(leaf.shape))
    row = _Row(name, tuple(shape), np.dtype(leaf.dtype).name, placed, arrays, count, count * itemsize,
               math.prod(held) * itemsize)  # fmt: skip
    if stats:
        values = jnp.asarray(leaf, jnp.float32)
        mean, std = float(values.mean()), float(values.std())
        row.total, row.total_of_squares = mean * count, (std**2 + mean**2) * count
    return row


def _grouped(rows):
    groups = {}
    for row in rows:
        row.name = re.sub(r"(?<![^.])\d+(?![^.])", "*", row.name)
        key = (row.name, row.shape, row.dtype, row.placed)
        if key in groups:
            groups[key].join(row)
        else:
            groups[key] = row
    return list(groups.values())


def _cells(row, sharded, stats):
    times = f"{row.arrays} × " if row.arrays > 1 else ""
    cells = [row.name, times + str(list(row.shape)), row.dtype, f"{row.count:,}"] + [row.placed] * sharded
    if stats:
        mean = row.total / row.count
        cells += [f"{mean:.3g}", f"{math.sqrt(max(row.total_of_squares / row.count - mean**2, 0)):.3g}"]
    return cells


def _bytes(n):
    exponent = min(int(math.log2(max(n, 1))) // 10, 3)
    return f"{n / 1024**exponent:.{min(exponent, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[exponent]}"
