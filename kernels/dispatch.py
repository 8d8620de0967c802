"""Which implementation of an operator runs: by the device that the program is for, and by what each one takes."""

import contextlib
import contextvars
from typing import NamedTuple

import jax

from vision_jax.errors import InputError, unknown

# Kernels that run by name only, and why. Those for GPUs are lowered for an H200 and interpreted, but have not run on
# one; the interpreter is given other products than the tensor cores'.
BY_NAME = {"gpu": "it has not been tried on this hardware"}

_explained = contextvars.ContextVar("explained", default=None)
_interpret = contextvars.ContextVar("interpret", default=False)


class Choice(NamedTuple):
    """One call of an operator: the implementation that it takes, and why it does not take the others."""

    operator: str
    shape: tuple
    implementation: str
    refused: dict

    def __str__(self):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
        return f"{self.operator}{list(self.shape)} -> {self.implementation} ({reasons})"


def device():
    """(platform, kind) that is traced for: of the mesh in force, which may be of a machine that is not here."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None and described.platform is not None:
        return described.platform, described.device_kind
    platform = jax.default_backend()
    return platform, jax.devices()[0].device_kind


def choose(operator, shape, implementation, refusals, by_name=None):
    """The implementation of one call.

    Args:
      operator: its name, for messages.
      shape: of the queries, on one device.
      implementation: the caller's wish, "xla" or a kernel; or None: the kernel of the device where it takes the call,
        and not by name only; else XLA.
      refusals: for each kernel that there is, "tpu" or "gpu", a function that tells why it does not take these shapes
        and options, or gives None where it does; called where the answer matters.
      by_name: {kernel: why it takes this call only where it is named, or None}, beside `BY_NAME`.

    Returns:
      "xla", "tpu" or "gpu".

    Raises:
      InputError: an unknown implementation, or a named one that cannot run here, with the reason.
    """
    if implementation not in (None, "xla", *refusals):
        raise unknown(f"implementation of {operator}", implementation, ("xla", *refusals))
    platform, kind = device()
    asked = _explained.get() is not None
    reasons, by_name = {}, (by_name or {}) | BY_NAME
    for name, refusal in refusals.items():
        reason = _elsewhere(name, platform, kind)
        if asked or name == implementation or not reason:  # what the call is matters more than where
            reason = refusal() or reason
        if not reason and implementation is None and by_name.get(name):
            reason = f"by implementation={name!r} only: {by_name[name]}"
        reasons[name] = reason
    refused = {name: reason for name, reason in reasons.items() if reason}
    chosen = implementation or next((name for name in refusals if name == platform and name not in refused), "xla")
    if chosen in refused:
        raise InputError(f"implementation={chosen!r} of {operator} cannot run: {refused[chosen]}")
    if asked:
        _explained.get().append(Choice(operator, tuple(shape), chosen, refused))
    return chosen


def _elsewhere(name, platform, kind):
    """Why a kernel does not run on this device, whatever the call, or None."""
    if _interpret.get():
        return None
    if platform != name:
        return f"this program is for a {platform}"
    if name == "gpu" and not any(made in kind for made in ("H100", "H200", "GH200")):
        return f"the kernel is for sm_90, which {kind} is not"
    return None


def explain(f, *args, **kwargs):
    """What each kernel operator called by `f(*args, **kwargs)` would run here, and why not something else.

    Nothing is computed: f is traced. Under a mesh, shapes are those of one device.

    Args:
      f: an operator of `vision_jax.kernels`, a model, or any function that JAX can trace.
      *args, **kwargs: its arguments; arrays or `jax.ShapeDtypeStruct`s, and static options.

    Returns:
      A list of `Choice`, one for each call in the order of tracing (a scanned stack of blocks is traced once).
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def call(*arrays):
        left = iter(arrays)
        args, kwargs = tree.unflatten([next(left) if one else leaf for leaf, one in zip(leaves, traced, strict=True)])
        return f(*args, **kwargs)

    token = _explained.set([])
    try:
        jax.eval_shape(call, *(leaf for leaf, one in zip(leaves, traced, strict=True) if one))
        return _explained.get()
    finally:
        _explained.reset(token)


@contextlib.contextmanager
def interpreted(mode=True):
    """While in force, kernels run in Pallas's interpreter, on any device: for tests.

    Args:
      mode: True, or the parameters of a Pallas interpreter (which can look for races).
    """
    token = _interpret.set(mode)
    try:
        yield
    finally:
        _interpret.reset(token)


def interpret():
    """What `pallas_call` is to be given as `interpret`."""
    return _interpret.get()
