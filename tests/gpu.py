"""Lowering for a GPU that is not here: all that JAX's part of the compiler does, and none of what ptxas does."""

import jax


def device(kind="NVIDIA H200", multiprocessors=132):
    """A mesh of no axes on an H200, to be put in force by `jax.sharding.use_abstract_mesh`."""
    described = jax.sharding.AbstractDevice(device_kind=kind, num_cores=multiprocessors, platform="gpu")
    return jax.sharding.AbstractMesh((), (), abstract_device=described)


def lower(f, *shapes):
    """The text of f(*shapes) lowered for an H200. Raises what Mosaic GPU raises where it takes a kernel's tiles not."""
    unchecked = [jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    with jax.sharding.use_abstract_mesh(device()):
        return jax.export.export(jax.jit(f), platforms=["cuda"], disabled_checks=unchecked)(*shapes).mlir_module()
