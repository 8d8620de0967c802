"""A config's training step, compiled for a TPU slice that is not here: does it fit, and how fast can it be?

Nothing is read but the config and nothing computed: state and batch are shapes with shardings. Data on disk are not
opened: their images are taken to be photographs, and their classes as many as `model.num_classes` says, or the run's
own config, or the model's default.
"""

import copy
import functools
import json
import logging
import pathlib

import jax
import numpy as np

from vision_jax import registry
from vision_jax.data import load_source
from vision_jax.data.sources import check_source
from vision_jax.data.sources.stand_in import SIZES, StandIn
from vision_jax.errors import InputError
from vision_jax.parallel import ahead, topology
from vision_jax.parallel.chips import GIB, chip_of
from vision_jax.parallel.macs import count
from vision_jax.train import config as configs
from vision_jax.train.lowered import batch_shapes, lower
from vision_jax.train.run import build
from vision_jax.train.step import without_gradient

logger = logging.getLogger(__name__)

ON_DISK = ("folder", "tfds")
PLAIN = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "false"
    for kind in ("all_gather", "all_reduce", "reduce_scatter")
}
REMAT = ("dots_no_batch", "full")  # more and more is computed again


def compile_only(config, name, workdir=None):
    """Compiles the step, prints what it takes, and what would make it fit where it does not.

    Args:
      config: see `vision_jax.train.config`.
      name: of a slice, as "v5e:16x16", or of several, as "2*v5e:16x16".
      workdir: where `compile_only.json`, the same figures, is written; None for nowhere.

    Returns:
      Whether it fits.

    Raises:
      InputError: the config cannot be, on this slice.
    """
    jax.config.update("jax_platforms", "cpu")  # the slice is not here, and whatever is here is not wanted
    run = build_for(config, name)
    report = measure(run)
    mesh = ", ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items())
    told = f"{run.config.model.name} on {name}: mesh {mesh}; batch {run.config.data.batch_size}"
    images = f"{'x'.join(map(str, run.train_shape))} of {len(run.task.class_names)} classes"
    print("\n".join([f"{told} images of {images}", *report.lines()]))
    found = {"topology": name, "model": run.config.model.name, "mesh": dict(run.mesh.shape)}
    found |= {"batch_size": run.config.data.batch_size, **report.as_json()}
    if not report.fits:
        found["remedy"] = remedy = fitting(run, name)
        print(f"it fits with {' '.join(remedy)}" if remedy else "no finer sharding, remat or accumulation makes it fit")
    if workdir is not None:
        path = pathlib.Path(workdir) / "compile_only.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")
    return report.fits


def build_for(config, name):
    """The `Run` of a config on a slice, its data not opened."""
    try:
        devices = topology.devices(name)
    except InputError as error:
        raise InputError(f"--compile_only={name}: {error}") from error
    if "*" in name and not chip_of(devices[0].device_kind).network:
        one = name.split("*")[1]
        raise InputError(f"--compile_only={name}: how fast a network joins such slices is not published; take {one}")
    run = build(config, training=True, evaluation=True, devices=devices, open_source=functools.partial(_source, config))
    if isinstance(run.train_source, StandIn):
        examples = [run.train_ops[0](run.train_source[i], np.random.default_rng(0)) for i in range(len(SIZES))]
        shapes = {np.shape(example["image"]) for example in examples}
        if len(shapes) > 1:
            some = " and ".join(str(shape[:2]) for shape in sorted(shapes)[:2])
            raise InputError(f"data.ops give images of several sizes, as {some}: crop or resize to one (height, width)")
    return run


def _source(config, name, split, **options):
    if name not in ON_DISK:
        return load_source(name, split, **options)
    check_source(name, options)
    told = config.model.get("num_classes") or len(config.task.get("class_names") or ())
    return StandIn(told or registry.model_info(config.model.name).config.num_classes)


def measure(run):
    """The `ahead.Report` of a run's training step."""
    lowered = lower(run)
    try:
        compiled = lowered.compile()
        compiled = compiled if _readable(compiled) else lowered.compile(compiler_options=PLAIN)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = error
    return ahead.report(compiled, run.mesh, run.state_shapes(), model_flops(run))


def _readable(compiled):
    """Whether this JAX reads what the compiler made; JAX 0.10 does not for 7x, of libtpu 0.0.51."""
    try:
        compiled.as_text()
    except jax.errors.JaxRuntimeError:
        logger.info("this JAX cannot read the program: compiling again, collectives not handed to sparse cores")
        return False
    return True


def model_flops(run):
    """Floating-point operations of a step: three times those of the student's forward pass, and a teacher's.

    Where layers are frozen, those of the forward pass and of the gradients that are left. Those of the model as it is
    written, on whatever device: not of a kernel's tiles, nor of what is computed again.
    """
    batch, frozen = batch_shapes(run), run.task.frozen_shapes()
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(run.train_ops[1], key, {k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in batch.items()})
    loss = functools.partial(run.task.train_loss, run.static)
    if freeze := run.config.optim.freeze:
        return 2 * count(jax.make_jaxpr(_probe(loss, freeze))(run.static.shapes, frozen, batch, key).jaxpr).macs
    forward = count(jax.make_jaxpr(loss)(run.static.shapes, frozen, batch, key).jaxpr).macs
    taught = 0
    if frozen:
        teacher = run.task.make_teacher()
        asked = teacher.dense_logits if run.task.token_labelling else teacher.logits
        taught = count(jax.make_jaxpr(asked)(frozen["teacher"], batch["image"]).jaxpr).macs
    return 2 * (3 * (forward - taught) + taught)


def _probe(loss, freeze):
    """The gradient of a loss (variables, ...) towards the parameters that are not frozen."""

    def gradient(variables, *args):
        def of(params):
            return loss({**variables, "params": without_gradient(freeze, params)}, *args)[0]

        return jax.grad(of)(variables["params"])

    return gradient


def fitting(run, name):
    """The first change of the config that makes the step fit, as arguments of the command; None where none does.

    Each is tried on top of those before it, and compiled unless the state alone is too large.
    """
    config = copy.deepcopy(run.config)
    changes = []
    for fields in _remedies(run, name):
        for field, value in fields.items():
            changes = [change for change in changes if change[0] != field] + [(field, value)]
        tried = copy.deepcopy(config)
        for field, value in changes:
            configs.override(tried, field, str(value))
        said = [f"--config.{field}={value}" for field, value in changes]
        try:
            other = build_for(tried, name)
        except InputError:
            continue  # as a batch that no longer divides
        capacity, state = ahead.slice_of(other.mesh).chip.memory, ahead.held(other.state_shapes())
        if state > capacity:
            logger.info("with %s the state alone takes %.2f GiB", " ".join(said), state / GIB)
            continue
        logger.info("trying %s", " ".join(said))
        if measure(other).fits:
            return said
    return None


def _finest(run, name):
    """The sizes (data, fsdp) of a mesh on which a device holds least of the state, and its bytes.

    Of equal ones that with the least data. More fsdp is not always less state: what it does not divide lies whole
    everywhere.
    """
    parts, slices = run.mesh.shape["data"] * run.mesh.shape["fsdp"], ahead.slice_of(run.mesh).slices
    found = {}
    for data in [data for data in range(slices, parts + 1, slices) if parts % data == 0]:
        config = copy.deepcopy(run.config)
        config.mesh.data, config.mesh.fsdp = data, parts // data
        found[data, parts // data] = ahead.held(build_for(config, name).state_shapes())
    sizes = min(found, key=found.get)
    return sizes, found[sizes]


def _remedies(run, name):
    """Changes of the config's fields, the cheapest in time first."""
    data, fsdp, _ = run.mesh.shape.values()
    sizes, state = _finest(run, name)
    if sizes != (data, fsdp):
        yield dict(zip(("mesh.data", "mesh.fsdp"), sizes, strict=True))
    offloads = [] if run.config.optim.offload else [{"optim.offload": True}]
    if state > ahead.slice_of(run.mesh).chip.memory:  # nothing else helps then
        yield from offloads
        offloads = []
    kept = getattr(run.model.config, "remat", "full")
    for policy in REMAT[REMAT.index(kept) + 1 :] if kept in REMAT else REMAT:
        yield {"model.remat": policy}
    parts, batch = data * fsdp, run.config.data.batch_size
    accumulate = 2 * run.config.optim.accumulate
    while batch % (parts * accumulate) == 0:
        yield {"optim.accumulate": accumulate}
        accumulate *= 2
    yield from offloads
