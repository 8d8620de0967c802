"""Which calls the TPU kernel takes."""

import math

from vision_jax.kernels.limits import mixed, vmem
from vision_jax.kernels.neighborhood_attention.query_tiles import QUERIES, layout


def refusal(q, k, v, shape, options, biased):
    """Why the kernel does not take a call, or None where it does.

    Args:
      q, k, v: arrays or shapes.
      shape: q's on one device.
      options: as `layout` takes them.
      biased: whether there is a bias.
    """
    sizes = shape[1:-2]
    if len(sizes) > 2:
        return "maps of three axes: through XLA only"
    if v.shape[-1] != q.shape[-1]:
        return "v must have q's head_dim"
    reason = mixed(q, k, v)
    if reason:
        return reason
    for n, d in zip(sizes, options["dilation"], strict=True):
        if n % d:
            return f"dilation={d} does not divide the {n} positions of an axis"
    tiles = layout(shape, options)
    if tiles.tile[1] > QUERIES:
        return f"a row of {tiles.size[1]} queries is too wide for one tile, and no multiple of 8 for more"
    if math.prod(tiles.tile) < 32 and math.prod(tiles.size) > 64:
        return f"tiles of {tiles.tile} queries of a map {tiles.size} leave the matrix unit empty"
    needed = tiles.vmem(biased, q.dtype.itemsize, backward=True)
    if needed > vmem():
        return f"the gradient of a tile of {tiles.tile} takes {needed / 2**20:.0f} MiB, more than VMEM has"
    return None
