"""Kernel calls on a mesh: each device computes its examples and its heads.

The compiler cannot partition a Pallas call, so an operator splits its operands by hand, with one `jax.shard_map`.
"""

import math

import jax
from jax.sharding import PartitionSpec as P

from vision_jax.mesh import BATCH, TENSOR

SPLIT = {"batch": BATCH, "heads": (TENSOR,)}  # what a dimension is called -> the mesh axes that may split it


def split_axes(sizes):
    """The mesh axes that split the dimensions of an operator.

    Args:
      sizes: for "batch" and "heads" the sizes, all of which an axis must divide (queries and keys may differ in heads).

    Returns:
      For "batch" and "heads" the axes, of the mesh in force; an axis that does not divide, or is already manual, is
      left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = set(mesh.manual_axes)
    out = {}
    for name, axes in SPLIT.items():
        kept, parts = [], 1
        for axis in axes:
            more = parts * mesh.shape.get(axis, 0)
            if more and axis not in manual and all(size % more == 0 for size in sizes[name]):
                kept.append(axis)
                parts = more
        out[name] = tuple(kept)
    return out


def local_shape(shape, names, axes):
    """The shape of one device's part of an array whose dimensions are called `names`."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        size // math.prod(mesh.shape[axis] for axis in axes.get(name, ()))
        for size, name in zip(shape, names, strict=True)
    )


def over_mesh(f, operands, names, out_names, axes):
    """f(*operands), each device with its part.

    Args:
      f: a function of the operands' parts.
      operands: arrays, or None where an optional one is absent.
      names: for each operand the names of its dimensions: "batch", "heads", or None for one that is kept whole.
      out_names: the same for the result, or a list of them for a tuple of results.
      axes: from `split_axes`.

    Returns:
      The result, whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if not free:
        return f(*operands)
    spec = lambda names: P(*(axes.get(name) or None for name in names))  # noqa: E731
    present = [operand is not None for operand in operands]

    def part(*arrays):
        left = iter(arrays)
        return f(*(next(left) if there else None for there in present))

    # Every free axis is made manual: the compiler may not partition the call over one that is left to it.
    return jax.shard_map(
        part,
        in_specs=tuple(spec(n) for n, there in zip(names, present, strict=True) if there),
        out_specs=tuple(map(spec, out_names)) if isinstance(out_names, list) else spec(out_names),
        axis_names=free,
        check_vma=False,  # a Pallas call does not say over which axes its result varies
    )(*(operand for operand in operands if operand is not None))
