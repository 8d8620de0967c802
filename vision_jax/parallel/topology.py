"""TPU slices that are not here: libtpu compiles for them all the same."""

import functools
import os

import numpy as np
from jax.sharding import AxisType, Mesh

from vision_jax.errors import InputError

# Read when libtpu is loaded. It asks for no machine's description, and more than one process may load it: the lock is
# for machines that have the chips.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@functools.cache
def devices(topology):
    """The devices of a slice, for `jax.jit(...).lower(...).compile()` on any machine.

    Args:
      topology: a generation and chips along each dimension: "v4:2x2x1", "v5e:4x4", "v5p:4x4x4", "v6e:16x16", or
        "7x:2x2x1", whose chips are two devices each. "2*v5e:16x16" is two such slices, joined by a network.

    Raises:
      InputError: libtpu is missing, or it knows no such topology.
    """
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    slices, _, name = topology.rpartition("*")
    options = {"chip_config_name": "megacore"} if name.startswith("v4") else {}  # one device a chip, as v4 runs
    name = f"tpu{name}" if name.startswith("7x") else name
    if slices:
        if not slices.isdecimal() or int(slices) < 1:
            raise InputError(f"topology={topology!r}: the number of slices stands before the star, as '2*v5e:16x16'")
        options["num_slices"] = int(slices)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # JAX raises whatever the plugin said
        raise InputError(
            f"topology={topology!r} cannot be compiled for: a name such as 'v5e:4x4', 'v5p:2x2x1' or 'v6e:2x4', and "
            f"`pip install libtpu` ({str(error).splitlines()[0]})"
        ) from error


def make_mesh(topology, **sizes):
    """A mesh of the first devices of a slice.

    Args:
      topology: as `devices` takes it.
      **sizes: axis -> size, outermost first; one device, axis "data", by default.
    """
    sizes = sizes or {"data": 1}
    chosen = np.array(devices(topology)[: int(np.prod(list(sizes.values())))]).reshape(tuple(sizes.values()))
    return Mesh(chosen, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
