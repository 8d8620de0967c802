"""Compiling for a TPU that is not here: libtpu knows the real ones' compiler."""

import functools
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Read when libtpu is loaded. The lock is for machines with a TPU, of which only one process can make use.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
GENERATIONS = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}


@functools.cache
def devices(generation):
    """The devices of a small slice, or of the topology given as "v5e:4x4"."""
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    name = GENERATIONS.get(generation, generation)
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def mesh(generation, **sizes):
    """A mesh of `sizes` (1 device by default) out of the slice's devices."""
    sizes = sizes or {"data": 1}
    chosen = np.array(devices(generation)[: int(np.prod(list(sizes.values())))]).reshape(tuple(sizes.values()))
    return Mesh(chosen, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def compile_for(mesh, f, *shapes, specs=None):
    """f(*shapes) compiled for the mesh; `specs`: how each is laid out, whole by default."""
    specs = specs or [PartitionSpec()] * len(shapes)
    shapes = [
        jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))
        for s, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        return jax.jit(f).lower(*shapes).compile()
