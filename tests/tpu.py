"""Kernels for a TPU that is not here: interpreted beside the XLA path, and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vision_jax.kernels import dispatch

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


def kernel_and_xla(attend, arrays, options):
    """Output and gradients of attend(arrays, options, implementation): the interpreted kernel's pair, and XLA's."""

    def run(implementation):
        @jax.jit
        def run(arrays):
            out, pull = jax.vjp(lambda arrays: attend(arrays, options, implementation), arrays)
            return out, pull(jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size).reshape(x.shape)), out))[0]

        return run(arrays)

    with dispatch.interpreted():
        return run("tpu"), run("xla")


def assert_close(ours, theirs, tolerance):
    """Trees of arrays, equal but for `tolerance`, relative to each array's largest value where that is above 1."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        largest = max(1, np.abs(np.asarray(other)).max())
        np.testing.assert_allclose(one, other, atol=tolerance * largest, rtol=tolerance)
