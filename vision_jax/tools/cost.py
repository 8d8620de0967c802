"""What a model costs, counted from its traced program without running it."""

import jax
import jax.numpy as jnp

from vision_jax.functional import apply, split
from vision_jax.layers.conv import pair
from vision_jax.parallel.macs import count


def count_cost(model):
    """The cost of one image in evaluation mode: of products and convolutions, as torch's and fvcore's counters count.

    Args:
      model: a model, abstract or not.

    Returns:
      A `vision_jax.parallel.macs.Cost`; divide by 1e9 and 1e6 for the usual units.
    """
    static, variables = split(model)
    config = model.config
    images = jax.ShapeDtypeStruct((1, *pair(config.img_size), config.in_chans), jnp.float32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    return count(jax.make_jaxpr(lambda v, x: apply(static, v, x)[0])(shapes, images).jaxpr)
