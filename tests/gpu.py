"""Kernels for a GPU that is not here: in Pallas's interpreter, and lowered.

The interpreter shows what a kernel computes and takes what the compiler refuses; lowering is all that JAX's part of the
compiler does, and none of what ptxas does.
"""

import contextlib
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from vision_jax.kernels import dispatch, explain

from vision_jax.errors import InputError


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


def assert_equals_xla(attend, arrays, options):
    """The interpreted kernel's results and gradients, of bfloat16 maps, are near those of the XLA path in float32.

    All that bfloat16 products may cost is 1% of the largest value. `attend` is a function of arrays, options and the
    name of an implementation.
    """
    exact = jax.tree.map(lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a, arrays)

    def run(arrays, implementation):
        @jax.jit
        def run(arrays):
            out, pull = jax.vjp(lambda arrays: attend(arrays, options, implementation), arrays)
            rng = np.random.default_rng(1)
            weights = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.bfloat16).astype(x.dtype), out)
            return out, pull(weights)[0]

        return run(arrays)

    with dispatch.interpreted():
        ours = run(arrays, "gpu")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(run(exact, "xla")), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=0.01 * np.abs(b).max())


def assert_no_race(attend, arrays, options):
    """No copy of a forward or a backward kernel meets another access, as far as the interpreter looks.

    Newer versions of JAX raise; older ones print, and keep a note for the last kernel alone.
    """
    from vision_jax.kernels import mosaic_gpu

    def total(arrays):
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(attend(arrays, options, "gpu")))

    printed = io.StringIO()
    with dispatch.interpreted(mosaic_gpu.interpret_params(detect_races=True)), contextlib.redirect_stdout(printed):
        jax.block_until_ready(jax.jit(jax.grad(total))(arrays))
    assert "RACE" not in printed.getvalue()


def assert_refused(why, attend, *shapes, **options):
    """An H200 runs attend(*shapes, **options) by XLA, and an error that matches `why` tells that the kernel cannot."""
    with jax.sharding.use_abstract_mesh(mesh()):
        (choice,) = explain(attend, *shapes, **options)
        assert choice.implementation == "xla"
        with pytest.raises(InputError, match=why):
            jax.eval_shape(functools.partial(attend, **options, implementation="gpu"), *shapes)


def assert_by_name_only(attend, *shapes):
    """An H200 runs a call that the kernel takes by XLA where it is not named, and is told why."""
    with jax.sharding.use_abstract_mesh(mesh()):
        (choice,) = explain(attend, *shapes)
    assert choice.implementation == "xla"
    assert "not been tried" in choice.refused["gpu"]
