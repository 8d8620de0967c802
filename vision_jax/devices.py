"""The devices that are here, and what to say when one is missing or its memory does not suffice."""

import logging
import os
import pathlib

import jax

from vision_jax.errors import InputError

logger = logging.getLogger(__name__)

# What an accelerator's driver leaves in /dev, and what gives JAX for it
DRIVERS = (("/dev/nvidia0", "GPU", "cuda"), ("/dev/accel0", "TPU", "tpu"), ("/dev/vfio/0", "TPU", "tpu"))


def check_devices():
    """The devices of the default platform; warns where JAX takes the CPU beside an accelerator.

    Raises:
      InputError: the platform that was asked for is not here.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a plugin is missing
        name = {"gpu": "cuda"}.get(asked, asked or "cuda")
        why = str(error).splitlines()[0] if str(error) else f"JAX has no plugin for {asked!r} here"
        raise InputError(
            f"JAX_PLATFORMS={asked}: no such device was found. `pip install 'vision-jax[{name}]'` brings JAX for it; "
            f"JAX_PLATFORMS=cpu runs without ({why})"
        ) from error
    if devices[0].platform == "cpu" and not asked:
        for path, kind, extra in DRIVERS:
            if pathlib.Path(path).exists():
                told = f"this machine seems to have a {kind} ({path}), but JAX here is for CPUs alone: training runs on"
                logger.warning("%s the CPU. `pip install 'vision-jax[%s]'` brings JAX for it", told, extra)
                break
    return devices


def out_of_memory(error):
    """Whether an error says that a device's memory does not suffice."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def memory_limit():
    """Bytes of a device's memory that JAX may take; None where the device does not say, as CPUs do not."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def batch_that_fits(compile_at, batch):
    """The largest of a half, a quarter, ... of a batch for which a program fits in a device; None if none does.

    Args:
      compile_at: a batch -> its compiled program.
      batch: that does not fit.
    """
    limit, batch = memory_limit(), batch // 2
    while batch:
        try:
            compiled = compile_at(batch)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
        else:
            if limit is None or _taken(compiled) <= limit:
                return batch
        batch //= 2
    return None


def _taken(compiled):
    """Bytes that a device holds while a program runs; what it overwrites counts once."""
    m = compiled.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return held + m.temp_size_in_bytes
