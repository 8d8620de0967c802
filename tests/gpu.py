"""Lowering for a GPU that is not here: all that JAX's part of the compiler does, and none of what ptxas does."""

import jax
from jax.sharding import AxisType


def mesh(kind="NVIDIA H200", multiprocessors=132, **sizes):
    """A mesh of `sizes` (one GPU by default) of GPUs that need not be here, for `jax.sharding.use_abstract_mesh`."""
    described = jax.sharding.AbstractDevice(device_kind=kind, num_cores=multiprocessors, platform="gpu")
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, abstract_device=described)


def lower(f, *shapes, **sizes):
    """The text of f(*shapes) lowered for a mesh of H200s. Raises what Mosaic GPU raises where it refuses a kernel."""
    unchecked = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    with jax.sharding.use_abstract_mesh(mesh(**sizes)):
        return jax.export.export(jax.jit(f), platforms=["cuda"], disabled_checks=unchecked)(*shapes).mlir_module()
