"""What a model costs, counted from its traced program without running it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from vision_jax.functional import apply, split
from vision_jax.layers.conv import pair


class Cost(NamedTuple):
    """What one image costs: multiply-adds, and elements that products and convolutions put out."""

    macs: int
    activations: int


def count_cost(model):
    """The cost of one image in evaluation mode: of products and convolutions, as torch's and fvcore's counters count.

    Args:
      model: a model, abstract or not.

    Returns:
      A `Cost`; divide by 1e9 and 1e6 for the usual units.
    """
    static, variables = split(model)
    config = model.config
    images = jax.ShapeDtypeStruct((1, *pair(config.img_size), config.in_chans), jnp.float32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    return _count(jax.make_jaxpr(lambda v, x: apply(static, v, x)[0])(shapes, images).jaxpr)


def _count(jaxpr):
    macs = activations = 0
    for equation in jaxpr.eqns:
        primitive, params, times = equation.primitive.name, equation.params, 1
        if primitive == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            per_output = math.prod(left[axis] for axis in contracted)
        elif primitive == "conv_general_dilated":
            kernel = equation.invars[1].aval
            per_output = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        else:
            times = params["length"] if primitive == "scan" else 1
            for inner in map(_count, _chosen(params)):
                macs, activations = macs + times * inner.macs, activations + times * inner.activations
            continue
        size = equation.outvars[0].aval.size
        macs, activations = macs + size * per_output, activations + size
    return Cost(macs, activations)


def _chosen(params):
    """The programs inside an equation; of one for each platform that which serves all platforms not named."""
    platforms = params.get("branches_platforms")
    return [params["branches"][platforms.index(None)].jaxpr] if platforms else _inner(params)


def _inner(params):
    """The programs inside an equation: of a scan, a jitted function, a custom derivative."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
