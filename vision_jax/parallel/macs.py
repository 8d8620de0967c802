"""Multiply-adds of a traced program, without running it."""

import math
from typing import NamedTuple

from jax.extend import core


class Cost(NamedTuple):
    """What a program costs: multiply-adds, and elements that products and convolutions put out."""

    macs: int
    activations: int


def count(jaxpr):
    """The `Cost` of a jaxpr: of its products and convolutions; a scanned body counts for each of its rounds."""
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
            for inner in map(count, _chosen(params)):
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
