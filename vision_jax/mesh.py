"""The device mesh: the names of its axes, and constraints that read the mesh in force.

Three axes, outermost first: `data` (copies of the model), `fsdp` (the batch too, and the parameters split over it),
`tensor` (attention heads and hidden features split over it). With no mesh in force every helper is the identity, so
that layers need not know whether they run on one device or on a pod.
"""

import contextlib
import contextvars
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vision_jax.errors import InputError

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
AXES = (DATA, FSDP, TENSOR)
BATCH = (DATA, FSDP)  # the axes over which the examples of a batch are split
SPLIT = {"batch": BATCH, "heads": (TENSOR,), "channels": (TENSOR,)}  # a dimension of a call -> what may split it


def make_mesh(data=-1, fsdp=1, tensor=1, devices=None):
    """A mesh with the axes (data, fsdp, tensor).

    Across slices, which a data centre's network joins, only the data axis goes: gradients are summed over it once a
    step, where the other axes move parameters and activations in every block.

    Args:
      data, fsdp, tensor: sizes; at most one may be -1, and takes the devices that the others leave.
      devices: the devices to use; all by default.

    Returns:
      A `jax.sharding.Mesh` with `AxisType.Auto` axes (JAX's default, Explicit, refuses window partitions).

    Raises:
      InputError: the sizes do not multiply to the number of devices, or the slices do not divide the data axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    elif free or known != len(devices):
        raise InputError(
            f"mesh={sizes} does not fit {len(devices)} devices: the sizes must multiply to it, at most one of them -1"
        )
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[DATA] % slices:
        raise InputError(
            f"mesh={sizes} over {slices} slices: data must be a multiple of their number, the network between them is "
            "too slow for parameters"
        )
    if slices > 1:
        within = (sizes[DATA] // slices, *shape[1:])
        placed = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(placed, AXES, axis_types=kinds)
    try:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # an axis of the mesh that is no product of the torus's dimensions: 256 chips of 8x8x8
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(placed, AXES, axis_types=kinds)


def fit(spec, shape, mesh):
    """`spec` without the axes that the mesh lacks, that are already manual, or that do not divide the dimension.

    Args:
      spec: for each dimension None, an axis or a tuple of axes; missing trailing ones are None.
      shape: the array's shape.
      mesh: a concrete or abstract mesh.
    """
    manual = set(getattr(mesh, "manual_axes", ()))
    out = []
    for size, axes in zip(shape, (*spec, *(None,) * (len(shape) - len(spec))), strict=True):
        kept, product = [], 1
        for axis in axes if isinstance(axes, tuple) else (axes,):
            if axis in mesh.shape and axis not in manual and size % (product * mesh.shape[axis]) == 0:
                kept.append(axis)
                product *= mesh.shape[axis]
        out.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return P(*out)


def constrain(x, *spec):
    """Asks the compiler to lay x out as `spec` says on the mesh in force; the identity where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.manual_axes) >= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, fit(spec, x.shape, mesh))


def constrain_batch(x):
    """Activations [B, ...]: the batch over (data, fsdp), everything else whole; but see `splitting_tokens`."""
    return split_tokens(x) if _splits(x) else constrain(x, BATCH)


def split_tokens(x):
    """Tokens [B, N, C]: N over the tensor axis where `splitting_tokens` is in force, else x as it is."""
    if not _splits(x):
        return x
    _tokens.get().append(x.shape)
    batch = fit((BATCH,), x.shape, jax.sharding.get_abstract_mesh())[0]
    return jax.lax.with_sharding_constraint(x, P(batch, TENSOR, None))  # padded, where tensor does not divide N


_tokens = contextvars.ContextVar("tokens", default=None)


def _splits(x):
    mesh = jax.sharding.get_abstract_mesh()
    return _tokens.get() is not None and x.ndim == 3 and TENSOR in mesh.axis_names and not mesh.manual_axes


@contextlib.contextmanager
def splitting_tokens(on):
    """While in force, if `on`, tokens [B, N, C] are split over the tensor axis between attention and MLPs, along N.

    There they are whole, and heads and hidden features split (sequence parallelism: Korthikanti et al., 2022,
    arXiv:2205.05198): what is kept for the gradient shrinks by the size of the axis. Gives the list of the shapes that
    have been split, or None.
    """
    shapes = [] if on else None
    token = _tokens.set(shapes)
    try:
        yield shapes
    finally:
        _tokens.reset(token)


def split_axes(sizes):
    """The axes of the mesh in force that split the dimensions of a call, for `over_mesh`.

    Args:
      sizes: for names of `SPLIT` the sizes, all of which an axis must divide (queries and keys may differ in heads).

    Returns:
      For each of the names its axes; one that does not divide, or is already manual, is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = set(mesh.manual_axes)
    out = {}
    for name, every in sizes.items():
        kept, parts = [], 1
        for axis in SPLIT[name]:
            more = parts * mesh.shape.get(axis, 0)
            if more and axis not in manual and all(size % more == 0 for size in every):
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
    """f(*operands), each device with its part: for what the compiler cannot partition, or must not.

    It cannot partition a Pallas call. It must not partition a grouped convolution: the gradient of its kernel comes out
    multiplied by the size of every axis over which the batch is not split (depthwise: JAX 0.10.2 and 0.12), or the
    batch is gathered (openxla/xla#47945).

    Args:
      f: a function of the operands' parts.
      operands: arrays, or None where an optional one is absent.
      names: for each operand the names of its dimensions, of `SPLIT`, or None for one that is kept whole.
      out_names: the same for the result, or a list of them for a tuple of results.
      axes: from `split_axes`.

    Returns:
      The result, whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if not free:
        return f(*operands)
    present = [operand is not None for operand in operands]

    def spec(names):
        return P(*(axes.get(name) or None for name in names))

    def part(*arrays):
        left = iter(arrays)
        return f(*(next(left) if there else None for there in present))

    # Every free axis is made manual: the compiler would partition the call over one that is left to it.
    return jax.shard_map(
        part,
        in_specs=tuple(spec(n) for n, there in zip(names, present, strict=True) if there),
        out_specs=tuple(map(spec, out_names)) if isinstance(out_names, list) else spec(out_names),
        axis_names=free,
        check_vma=False,  # neither a Pallas call nor a custom gradient says over which axes its result varies
    )(*(operand for operand in operands if operand is not None))


_placement = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def placing(place):
    """While in force, a stack of scanned blocks passes each layer's parameters through `place(name, leaf)`.

    Parameters that are sharded for storage are gathered where they are used. For most that is the start of the step;
    for stacked ones it must be inside the scan's body, or the whole stack would be gathered at once.
    """
    token = _placement.set(place)
    try:
        yield
    finally:
        _placement.reset(token)


def placement():
    """The function given to `placing`, or None."""
    return _placement.get()


_gradients = contextvars.ContextVar("gradients", default=None)


@contextlib.contextmanager
def gradients_in(dtype):
    """While in force, layers make their parameters' gradients, which are then summed over devices, in `dtype`."""
    token = _gradients.set(dtype)
    try:
        yield
    finally:
        _gradients.reset(token)


def gradient_dtype():
    """What was given to `gradients_in`, or None: that of the computation."""
    return _gradients.get()
