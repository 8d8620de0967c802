"""What a benchmark ran on: threads, hardware, versions."""

import importlib.metadata
import os
import pathlib
import platform
import re

import jax

from vision_jax.errors import InputError

LIBRARIES = ("jax", "jaxlib", "flax", "torch", "timm", "natten")
# Variables that change what runs.
SETTINGS = ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "OMP_WAIT_POLICY")


def use_threads(threads):
    """Leaves this process so many cores, before JAX starts: XLA's pool on CPUs gets as many threads as there are cores.

    Args:
      threads: their number; None for all that the process may use.

    Returns:
      The number, for peers to use as many.

    Raises:
      InputError: more than there are, or a system that cannot bind a process to cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads is not None:
            raise InputError(f"--threads={threads}: {platform.system()} cannot bind a process to cores; leave it out")
        return os.cpu_count()
    cores = sorted(os.sched_getaffinity(0))
    if threads is None:
        return len(cores)
    if not 1 <= threads <= len(cores):
        raise InputError(f"--threads={threads}: this process may use 1 to {len(cores)} cores")
    if threads < len(cores):
        os.sched_setaffinity(0, cores[:threads])
    return threads


def describe(threads):
    """Hardware and versions: {what: text}."""
    device = jax.devices()[0]
    found = {"device": f"{threads} threads of {processor()}" if device.platform == "cpu" else device.device_kind}
    found["load average at the start"] = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    found["python"] = platform.python_version()
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}


def processor():
    """The processor's name as the system tells it, with the number of its cores."""
    file = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", file.read_text()) if file.is_file() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({platform.machine()}, {os.cpu_count()} cores)"
