"""Compiling for a TPU that is not here."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax.parallel import topology

GENERATIONS = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}


def mesh(name, **sizes):
    """A mesh of `sizes` (1 device by default) out of a small slice of a generation, or of a topology."""
    return topology.make_mesh(GENERATIONS.get(name, name), **sizes)


def compile_for(mesh, f, *shapes, specs=None):
    """f(*shapes) compiled for the mesh; `specs`: how each is laid out, whole by default."""
    specs = specs or [PartitionSpec()] * len(shapes)
    shapes = [
        jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))
        for s, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        return jax.jit(f).lower(*shapes).compile()
