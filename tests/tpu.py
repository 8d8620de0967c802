"""Kernels for a TPU that is not here: interpreted beside the XLA path, and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vision_jax.kernels import dispatch

from vision_jax.mesh import make_mesh
from vision_jax.parallel import topology

GENERATIONS = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}


def mesh(name, **sizes):
    """A mesh of `sizes` (1 device by default) out of a small slice of a generation, or of a topology."""
    return topology.make_mesh(GENERATIONS.get(name, name), **sizes)


def in_turns(stages, everywhere=()):
    """(stage, generation) pairs for `parametrize`: each stage on one generation, in turns, some on all of them."""
    generations = list(GENERATIONS)
    return [
        (stage, generation)
        for i, stage in enumerate(stages)
        for generation in (generations if stage in everywhere else [generations[i % len(generations)]])
    ]


def compile_for(mesh, f, *shapes, specs=None, out=None):
    """f(*shapes) compiled for the mesh; `specs`: how each is laid out, whole by default; `out`: how the result is."""
    specs = specs or [PartitionSpec()] * len(shapes)
    shapes = [
        jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))
        for s, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        return jax.jit(f, out_shardings=None if out is None else NamedSharding(mesh, out)).lower(*shapes).compile()


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


def assert_equals_xla(attend, arrays, options):
    """The interpreted kernel's output within 1e-5 of the XLA path's, and its gradients within 1e-4."""
    (out, gradients), (expected, theirs) = kernel_and_xla(attend, arrays, options)
    assert_close(out, expected, 1e-5)
    assert_close(gradients, theirs, 1e-4)


def assert_close(ours, theirs, tolerance):
    """Trees of arrays, equal but for `tolerance`, relative to each array's largest value where that is above 1."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        largest = max(1, np.abs(np.asarray(other)).max())
        np.testing.assert_allclose(one, other, atol=tolerance * largest, rtol=tolerance)


def assert_as_near(attend, arrays, options, exact, implementation="tpu"):
    """The interpreted kernel's root mean square error at most 1.5 times that of the XLA path."""
    with dispatch.interpreted():
        outs = [np.asarray(attend(arrays, options, name), np.float64) for name in (implementation, "xla")]
    kernel, xla = (np.sqrt(np.mean((out - exact) ** 2)) for out in outs)
    assert kernel < 1.5 * xla


def assert_a_mesh_changes_nothing(attend, arrays, options):
    """Gradients of the interpreted kernel on 2 x 2 x 2 devices, within 1e-4 of those on one."""

    def total(arrays):
        return (attend(arrays, options, "tpu") ** 2).sum()

    with dispatch.interpreted():
        expected = jax.jit(jax.grad(total))(arrays)
        with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
            gradients = jax.jit(jax.grad(total))(arrays)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def residuals(attend, arrays, options, implementation="tpu"):
    """The arrays that the backward pass of attend(arrays, options, implementation) is given, interpreted."""
    with dispatch.interpreted():
        _, pull = jax.vjp(lambda arrays: attend(arrays, options, implementation), arrays)
    return [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]


def block_on_a_pod(attend, bias=()):
    """A block of 16 heads of 32 channels with its projections, forward and gradient, on 4 x 4 chips of v5e.

    Args:
      attend: q, k, v [8, 16, 16, heads, 32] and the biases -> [8, 16, 16, heads, 32].
      bias: shape of what it adds to the scores, heads first; or ().

    Returns:
      The compiled program's text; the batch split over fsdp=4 and the heads over tensor=4.
    """
    heads, head_dim, C = 16, 32, 512
    shapes = [(8, 16, 16, C), (C, 3, heads, head_dim), (heads, head_dim, C)]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    shapes += [jax.ShapeDtypeStruct(bias, jnp.float32)] if bias else []

    def loss(x, qkv, out, *bias):
        q, k, v = (jnp.einsum("bhwc,cnd->bhwnd", x, qkv[:, i]) for i in range(3))
        return jnp.einsum("bhwnd,ndc->bhwc", attend(q, k, v, *bias), out).astype(jnp.float32).sum()

    specs = [PartitionSpec("fsdp"), PartitionSpec(None, None, "tensor"), *[PartitionSpec("tensor")] * (1 + bool(bias))]
    step = jax.value_and_grad(loss, range(len(shapes)))
    return compile_for(mesh("v5e:4x4", fsdp=4, tensor=4), step, *shapes, specs=specs).as_text()


def moves_a_map(text):
    """Whether a compiled program gathers or exchanges anything between chips."""
    return " all-gather" in text or " all-to-all" in text
