"""A run of blocks: one after the other, or one body under `jax.lax.scan`; kept or recomputed for the gradient."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax import mesh
from vision_jax.errors import unknown
from vision_jax.functional import Train, emit, module_name, split, stack_modules, tapping
from vision_jax.names import STACKED

REMAT = {
    "full": None,  # keep the blocks' inputs alone
    "dots": jax.checkpoint_policies.dots_saveable,  # keep every matrix product
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep projections, recompute attention
}


class Stack(nnx.Module):
    """Blocks in a row; the only place that runs lists of blocks.

    Parameters are named `0.…`, `1.…` below the stack. With scan they lie stacked along a leading axis below `stacked`,
    and one traced body runs them all: compile time no longer grows with depth. Neither scan nor remat changes results:
    each block has one key, split beforehand, and its own drop-path rate.

    Args:
      make: index -> block; called as block(x, train, *context).
      rates: the drop-path rate of each block.
      scan: run one body under `jax.lax.scan`; the blocks must then be of one structure.
      remat: recompute in the backward pass what the policy does not keep: None, "full", "dots", "dots_no_batch".

    Raises:
      InputError: an unknown remat policy; scan over blocks that differ.
    """

    def __init__(self, make, rates, *, scan=False, remat=None):
        if remat is not None and remat not in REMAT:
            raise unknown("remat policy", remat, REMAT)
        self.rates, self.scan, self.remat = tuple(map(float, rates)), scan and len(rates) > 0, remat
        blocks = [make(i) for i in range(len(rates))]
        if not self.scan:
            for i, block in enumerate(blocks):
                setattr(self, str(i), block)
            return
        setattr(self, STACKED, stack_modules(blocks))

    def __len__(self):
        return len(self.rates)

    def __call__(self, x, train=None, *context, collect=()):
        """Runs x through all blocks.

        Args:
          x: what the first block takes, an array or a tree of arrays.
          train: train mode or None.
          *context: handed to every block as it is.
          collect: indices of the blocks whose outputs are returned too.

        Returns:
          x, or (x, [output of each block in `collect`]) where collect is given.
        """
        keys = jax.random.split(train.key(), len(self)) if train else [None] * len(self)
        if self.scan:
            x, maps = self._scanned(x, train, keys, context, collect)
        else:
            x, maps = self._unrolled(x, train, keys, context, collect)
        return (x, maps) if collect else x

    def _unrolled(self, x, train, keys, context, collect):
        maps = {}
        for i, (rate, key) in enumerate(zip(self.rates, keys, strict=True)):
            block = getattr(self, str(i))
            if self.remat is None:
                x = block(x, Train(key, rate) if train else None, *context)
            else:
                x = self._rematerialised(block, i, x, key, rate, context)
            if i in collect:
                maps[i] = x
        return x, [maps[i] for i in collect]

    def _rematerialised(self, block, i, x, key, rate, context):
        static, variables = split(block)
        names = (_join(module_name(self), i),)
        body = jax.checkpoint(functools.partial(_call, static, names), policy=REMAT[self.remat], static_argnums=(3,))
        x, stats, captured = body(variables, x, key, rate, context)
        nnx.update(block, *stats)
        emit(captured, names, stacked=False)
        return x

    def _scanned(self, x, train, keys, context, collect):
        block = getattr(self, STACKED)
        static, variables = split(block)
        names = tuple(_join(module_name(self), i) for i in range(len(self)))
        place = mesh.placement()
        # a rate of zero throughout stays a plain number: no mask is drawn at all
        rates = jnp.asarray(self.rates, jnp.float32) if train and any(self.rates) else None

        def body(x, layer):
            variables, key, rate = layer
            if place:
                variables = {**variables, "params": place(_join(module_name(self), STACKED), variables["params"])}
            x, stats, captured = _call(static, names, variables, x, key, 0.0 if rate is None else rate, context)
            return x, (stats, captured, x if collect else None)

        if self.remat is not None:
            # the loop already keeps the compiler from merging the recomputation with the first pass
            body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
        layers = (variables, keys if train else None, rates)
        x, (stats, captured, maps) = jax.lax.scan(body, x, layers, length=len(self))
        nnx.update(block, *stats)
        emit(captured, names, stacked=True)
        return x, [jax.tree.map(lambda m, i=i: m[i], maps) for i in collect]


def _call(static, names, variables, x, key, rate, context):
    """One block as a pure function: its output, the statistics it updated, its taps."""
    block = nnx.merge(static.graphdef, *variables.values())
    with tapping(block, names) as scope:
        x = block(x, Train(key, rate) if key is not None else None, *context)
    stats = [tree for name, tree in split(block)[1].items() if name != "params"]
    return x, stats, scope.captured


def _join(prefix, name):
    return f"{prefix}.{name}" if prefix else str(name)
