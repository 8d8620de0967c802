"""Which implementation of an operator runs: by the device that the program is for, and by what each one takes."""

import contextlib
import contextvars
from typing import NamedTuple

import jax

from vision_jax.errors import InputError, unknown

IMPLEMENTATIONS = ("xla", "tpu", "gpu")
# Run by name only. GPU kernels are lowered for an H200 and interpreted, but have not run on one; the interpreter is
# given other products than the tensor cores'.
BY_NAME = ("gpu",)

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


def choose(operator, shape, implementation, refusals):
    """The implementation of one call.

    Args:
      operator: its name, for messages.
      shape: of the queries, on one device.
      implementation: the caller's wish, one of `IMPLEMENTATIONS`, or None: the kernel of the device where it takes the
        call, but none of `BY_NAME`; else XLA.
      refusals: for "tpu" and "gpu" why the kernel does not take these shapes and options, or None where it does.

    Returns:
      One of `IMPLEMENTATIONS`.

    Raises:
      InputError: an unknown implementation, or a named one that cannot run here, with the reason.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", implementation, IMPLEMENTATIONS)
    platform, kind = device()
    refused = {name: reason for name, reason in refusals.items() if reason}
    for name in refusals:
        if platform != name and not _interpret.get():
            refused.setdefault(name, f"this program is for a {platform}")
    if "gpu" in refusals and platform == "gpu" and not any(name in kind for name in ("H100", "H200", "GH200")):
        refused.setdefault("gpu", f"the kernel is for sm_90, which {kind} is not")
    if implementation is None:
        for name in set(refusals) & set(BY_NAME):
            refused.setdefault(name, f"by implementation={name!r} only: it has not been tried on this hardware")
    chosen = implementation or next((name for name in refusals if name == platform and name not in refused), "xla")
    if chosen in refused:
        raise InputError(f"implementation={chosen!r} of {operator} cannot run: {refused[chosen]}")
    if _explained.get() is not None:
        _explained.get().append(Choice(operator, tuple(shape), chosen, refused))
    return chosen


def explain(f, *args, **kwargs):
    """What each kernel operator called by `f(*args, **kwargs)` would run here, and why not something else.

    Nothing is computed: f is traced. Under a mesh, shapes are those of one device.

    Args:
      f: an operator of `vision_jax.kernels`, a model, or any function that JAX can trace.
      *args, **kwargs: its arguments; arrays or `jax.ShapeDtypeStruct`s, and static options.

    Returns:
      A list of `Choice`, one for each call in the order of tracing (a scanned stack of blocks is traced once).
    """
    is_array = lambda x: hasattr(x, "shape") and hasattr(x, "dtype")  # noqa: E731
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if is_array(leaf)]

    def call(*arrays):
        left = iter(arrays)
        args, kwargs = tree.unflatten([next(left) if is_array(leaf) else leaf for leaf in leaves])
        return f(*args, **kwargs)

    token = _explained.set([])
    try:
        jax.eval_shape(call, *arrays)
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
