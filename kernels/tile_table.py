"""Tile sizes that were measured to be faster than those of a kernel's own rule: a row a kind of device and of call.

Each kernel's layout has a rule that goes by the compilers' static schedules and by memory, and that fits every chip. A
row here overrules it. `python -m vision_jax.tools.bench kernels --tune` tries the candidates on the device at hand and
prints the rows to add. No tile changes what a kernel computes.

| kernel | what a call is told apart by | its tile | the rule, and the candidates |
|---|---|---|---|
| window_attention.tpu | window, head_dim | windows computed at once | `window_attention/bands.py` |
| window_attention.gpu | window, head_dim | blocks of the grid | `window_attention/runs.py` |
| neighborhood_attention.tpu | size of a dilation group's map, kernel_size, head_dim | queries along the axes | \
`neighborhood_attention/query_tiles.py` |
| linear_attention.tpu | tokens, head_dim, and tokens of a row where it rotates | tokens of a step | \
`linear_attention/token_tiles.py` |
| causal_linear_attention.tpu | head_dim | tokens of a chunk | `linear_attention/chunks.py` |
"""

import contextlib
import contextvars
from typing import NamedTuple

from vision_jax.kernels import dispatch

# {(JAX's `device_kind`, kernel, call): tile}. All were measured in bfloat16, and fit in float32 too.
TABLE = {}

_tried = contextvars.ContextVar("tried", default=())
_asked = contextvars.ContextVar("asked", default=None)


class Asked(NamedTuple):
    """What a layout asked for: its kernel, what tells its call apart, the tile it got, and others that it can take."""

    kernel: str
    call: tuple
    tile: object
    candidates: tuple


def choose(kernel, call, rule, candidates):
    """The tile of a call: the one on trial, that of the table's row for this device, or the rule's.

    Args:
      kernel: its name, a row of the table above.
      call: what tells the call apart there; tuples and numbers.
      rule: the kernel's own choice.
      candidates: a function without arguments that gives the tiles worth trying.
    """
    tile = dict(_tried.get()).get(kernel)
    if tile is None:
        tile = TABLE.get((dispatch.device()[1], kernel, call), rule)
    if _asked.get() is not None:
        _asked.get().append(Asked(kernel, call, tile, tuple(candidates())))
    return tile


@contextlib.contextmanager
def trying(kernel, tile):
    """While in force, calls of a kernel take this tile."""
    token = _tried.set((*_tried.get(), (kernel, tile)))
    try:
        yield
    finally:
        _tried.reset(token)


@contextlib.contextmanager
def asked():
    """While in force, a list of what layouts ask for, in the order of tracing."""
    token = _asked.set([])
    try:
        yield _asked.get()
    finally:
        _asked.reset(token)
