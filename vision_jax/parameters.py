"""How parameters come to be: one helper, and initialisers that draw with numpy or under jit alike.

A model is built abstract (shapes only, milliseconds) and filled afterwards: from a seed with numpy, from a key on the
devices of a mesh, or from a weight file. Each leaf's draw depends on its name and the seed alone, so that scanned and
unrolled blocks, or a model with one layer more, start from the same values.
"""

import contextlib
import contextvars
import dataclasses
import math
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.names import is_stacked, names


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal with standard deviation `std`, redrawn beyond `limit` (in absolute value, as torch's trunc_normal_)."""

    std: float = 1.0
    mean: float = 0.0
    limit: float | None = None

    def __call__(self, draw, shape):
        bound = None if self.limit is None else self.limit / self.std
        return draw.normal(shape, bound) * self.std + self.mean


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform between `low` and `high`."""

    low: float
    high: float

    def __call__(self, draw, shape):
        return draw.uniform(shape) * (self.high - self.low) + self.low


@dataclasses.dataclass(frozen=True)
class Constant:
    """Every element `value`."""

    value: float

    def __call__(self, draw, shape):
        return draw.full(shape, self.value)


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """Of variance `scale / fan`: He (scale 2), Glorot (mode "fan_avg"), LeCun (scale 1, "fan_in").

    `distribution`: "normal", "uniform", or "truncated", a normal one cut at two of its deviations.

    A layer binds it to its fans, because the stored shape of a kernel does not tell them.
    """

    scale: float
    mode: str
    distribution: str = "normal"

    def bind(self, fan_in, fan_out):
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        std = math.sqrt(self.scale / fan)
        if self.distribution == "truncated":
            wide = std / 0.87962566103423978  # the deviation that is left of 1 by the cut
            return Normal(wide, limit=2 * wide)
        return Normal(std) if self.distribution == "normal" else Uniform(-std * math.sqrt(3), std * math.sqrt(3))


@dataclasses.dataclass(frozen=True)
class Damped:
    """`init` divided by sqrt(2 l) in block l of the model, counted from one: for the last map of each branch.

    BEiT (Bao et al., 2021, arXiv:2106.08254, section 2.5). The parameter's name tells the block, as it tells the draw,
    so that scanned blocks stay of one structure.
    """

    init: Normal

    def __call__(self, draw, shape):
        return self.init(draw, shape)

    def factor(self, name):
        """What the draw is multiplied by, for a parameter of this name; 1 outside a model's blocks."""
        block = re.match(r"blocks\.(\d+)\.", name)
        return 1.0 if block is None else 1 / math.sqrt(2 * (int(block[1]) + 1))


zeros, ones = Constant(0.0), Constant(1.0)
trunc_normal = Normal(0.02, limit=2.0)  # timm's trunc_normal_(std=.02): cut at +-2, not at two deviations
torch_default = VarianceScaling(1 / 3, "fan_in", "uniform")  # torch's Linear and Conv2d, and their biases
kaiming_normal = VarianceScaling(2.0, "fan_out")
lecun_normal = VarianceScaling(1.0, "fan_in", "truncated")
xavier_uniform = VarianceScaling(1.0, "fan_avg", "uniform")


class NumpyDraw:
    """Draws on the host."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)

    def normal(self, shape, bound=None):
        x = self._rng.standard_normal(shape, np.float32)
        while bound is not None and (beyond := np.abs(x) > bound).any():
            x[beyond] = self._rng.standard_normal(int(beyond.sum()), np.float32)
        return x

    def uniform(self, shape):
        return self._rng.random(shape, np.float32)

    def full(self, shape, value):
        return np.full(shape, value, np.float32)


class JaxDraw:
    """Draws under jit, straight onto the devices."""

    def __init__(self, key):
        self._key = key

    def normal(self, shape, bound=None):
        if bound is None:
            return jax.random.normal(self._key, shape)
        return jax.random.truncated_normal(self._key, -bound, bound, shape)

    def uniform(self, shape):
        return jax.random.uniform(self._key, shape)

    def full(self, shape, value):
        return jnp.full(shape, value, jnp.float32)


_abstract = contextvars.ContextVar("abstract", default=False)
_eager = NumpyDraw(0)  # modules built outside `create_model`: drawn in the order of their making


@contextlib.contextmanager
def abstract_parameters():
    """Within it `param` makes shapes, not arrays."""
    token = _abstract.set(True)
    try:
        yield
    finally:
        _abstract.reset(token)


def param(shape, init, fans=None, kind=nnx.Param):
    """A float32 parameter.

    Args:
      shape: its shape.
      init: `init(draw, shape)`, or one with `bind(fan_in, fan_out)`, hashable (it is kept with the parameter).
      fans: (fan_in, fan_out), needed by `VarianceScaling`.
      kind: the Variable type, and so the collection.

    Returns:
      An `nnx.Variable` that holds an array, or inside `abstract_parameters` its shape.
    """
    shape = tuple(int(n) for n in shape)
    init = init.bind(*fans) if hasattr(init, "bind") else init
    value = jax.ShapeDtypeStruct(shape, jnp.float32) if _abstract.get() else jnp.array(init(_eager, shape), jnp.float32)
    return kind(value, init=init)


def batch_stat(shape, init):
    """A float32 running statistic: not trained, updated by train-mode calls."""
    return param(shape, init, kind=nnx.BatchStat)


class Buffer(nnx.Variable):
    """A fixed array: loaded and saved with the model, neither trained nor updated."""


def buffer(shape, init):
    """A float32 `Buffer`."""
    return param(shape, init, kind=Buffer)


def draw_numpy(init, path, leaf, seed):
    """The initial value of a leaf on the host, from (seed, its name); a stacked leaf's blocks are drawn one by one."""
    shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
    values = [
        init(NumpyDraw((seed, _hash(name))), shape) * np.float32(_factor(init, name)) for name in names(path, leaf)
    ]
    return np.stack(values) if is_stacked(path) else values[0]


def draw_jax(init, path, leaf, key):
    """The same distribution under jit, from (key, its name): other values than numpy's, equal for any layout."""
    keys = jnp.stack([jax.random.fold_in(key, _hash(name)) for name in names(path, leaf)])
    factors = jnp.array([_factor(init, name) for name in names(path, leaf)], jnp.float32)
    if is_stacked(path):
        return jax.vmap(lambda k, factor: init(JaxDraw(k), leaf.shape[1:]) * factor)(keys, factors)
    return init(JaxDraw(keys[0]), leaf.shape) * factors[0]


def _factor(init, name):
    return init.factor(name) if isinstance(init, Damped) else 1.0


def _hash(name):
    return zlib.crc32(name.encode())
