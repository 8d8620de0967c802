"""The training step as a program of shapes: for the compiler, where nothing is to be computed."""

import copy
import math

import jax

from vision_jax.data.pipeline import TYPES
from vision_jax.mesh import BATCH
from vision_jax.parallel.sharding import batch_sharding, replicated
from vision_jax.train.run import build


def lower(run):
    """The training step lowered for the run's mesh, as `jax.jit(...).lower(...)` gives it."""
    with jax.set_mesh(run.mesh):
        return run.train_step().lower(run.state_shapes(), batch_shapes(run), _frozen_shapes(run))


def batch_shapes(run):
    """The shapes of a batch of the loop's, with shardings."""
    place, size = batch_sharding(run.mesh), run.config.data.batch_size
    shapes = {"image": (size, *run.train_shape), "label": (size,), "replaced": (size,)}
    return {key: jax.ShapeDtypeStruct(shape, TYPES[key], sharding=place) for key, shape in shapes.items()}


def _frozen_shapes(run):
    place = replicated(run.mesh)
    shapes = run.task.frozen_shapes()
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)


def examples_at_once(run):
    """Images that a device takes at once: its share of a microbatch."""
    c = run.config
    return c.data.batch_size // math.prod(run.mesh.shape[axis] for axis in BATCH) // c.optim.accumulate


def compiled_at(run, device_batch):
    """The step of a run compiled with at most so many images at once on a device; what is more is accumulated."""
    config = copy.deepcopy(run.config)
    config.optim.device_batch = device_batch
    return lower(build(config, training=True, evaluation=True)).compile()
