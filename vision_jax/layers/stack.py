"""A run of blocks: one after the other, or one body under `jax.lax.scan`; kept or recomputed for the gradient."""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax import mesh
from vision_jax.errors import unknown
from vision_jax.functional import Phases, Train, emit, module_name, split, stack_modules, tapping
from vision_jax.names import STACKED

REMAT = {
    "full": None,  # keep the blocks' inputs alone
    "dots": jax.checkpoint_policies.dots_saveable,  # keep every matrix product
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep projections, recompute attention
}


class Stack(nnx.Module):
    """Blocks in a row; the only place that runs lists of blocks.

    Parameters are named `0.…`, `1.…` below the stack. With scan they lie stacked along a leading axis below `stacked`,
    and one traced body runs them all: compile time no longer grows with depth. Blocks that alternate are stacked by
    themselves, below `stacked.0of2`, `stacked.1of2`, and the body runs one of each; what a last, incomplete period
    holds runs after the scan. Of runs of equal blocks, below `stacked.0of1`, `stacked.8of1`, each has its scan. Neither
    scan nor remat changes results: each block has one key, split beforehand, and its own drop-path rate.

    Args:
      make: index -> block; called as block(x, train, *context).
      rates: the drop-path rate of each block.
      period: blocks so many apart are of one structure, which scan needs; 2 where plain and shifted windows alternate.
      runs: the lengths of runs of blocks of one structure, where blocks change along the stack; their sum is the depth.
      scan: run one body under `jax.lax.scan`.
      remat: recompute in the backward pass what the policy does not keep: None, "full", "dots", "dots_no_batch".

    Raises:
      InputError: an unknown remat policy; scan over blocks that differ.
    """

    def __init__(self, make, rates, *, period=1, runs=None, scan=False, remat=None):
        if remat is not None and remat not in REMAT:
            raise unknown("remat policy", remat, REMAT)
        self.rates, self.scan, self.remat = tuple(map(float, rates)), scan and len(rates) > 0, remat
        blocks = [make(i) for i in range(len(rates))]
        if not self.scan:
            for i, block in enumerate(blocks):
                setattr(self, str(i), block)
            return
        self.starts = tuple(itertools.accumulate(runs or (), initial=0))[:-1] if runs else ()
        period = min(period, len(blocks))
        parts = {f"{j}of{period}": slice(j, None, period) for j in range(period)}
        if self.starts:
            parts = {f"{first}of1": slice(first, first + n) for first, n in zip(self.starts, runs, strict=True)}
        phases = {name: stack_modules(blocks[part], range(len(blocks))[part]) for name, part in parts.items()}
        setattr(self, STACKED, phases["0of1"] if len(phases) == 1 else Phases(phases))

    def __len__(self):
        return len(self.rates)

    def __call__(self, x, train=None, *context, each=None, collect=()):
        """Runs x through all blocks.

        Args:
          x: what the first block takes, an array or a tree of arrays.
          train: train mode or None.
          *context: handed to every block as it is.
          each: a tree of arrays with a leading axis of blocks, or None; each block gets its own row, after the context.
          collect: indices of the blocks whose outputs are returned too.

        Returns:
          x, or (x, [output of each block in `collect`]) where collect is given.
        """
        keys = jax.random.split(train.key(), len(self)) if train else [None] * len(self)
        if self.scan:
            x, maps = self._scanned(x, train, keys, context, each, collect)
        else:
            x, maps = self._unrolled(x, train, keys, context, each, collect)
        return (x, maps) if collect else x

    def _unrolled(self, x, train, keys, context, each, collect):
        maps = {}
        for i, (rate, key) in enumerate(zip(self.rates, keys, strict=True)):
            block, own = getattr(self, str(i)), () if each is None else (jax.tree.map(operator.itemgetter(i), each),)
            if self.remat is None:
                x = block(x, Train(key, rate) if train else None, *context, *own)
            else:
                x = self._rematerialised(block, i, x, key, rate, (*context, *own))
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

    def _scanned(self, x, train, keys, context, each, collect):
        stacked = getattr(self, STACKED)
        phases = stacked.named() if isinstance(stacked, Phases) else {"": stacked}
        # a rate of zero throughout stays a plain number: no mask is drawn at all
        rates = jnp.asarray(self.rates, jnp.float32) if train and any(self.rates) else None
        own, maps = (keys if train else None, rates, each), {}
        if len(self.starts) < 2:
            x, maps = self._scan(phases, range(len(self)), x, own, context, collect)
        else:
            ends = (*self.starts[1:], len(self))
            for (name, phase), first, end in zip(phases.items(), self.starts, ends, strict=True):
                part = jax.tree.map(operator.itemgetter(slice(first, end)), own)
                x, found = self._scan({name: phase}, range(first, end), x, part, context, collect)
                maps |= found
        return x, [maps[i] for i in collect]

    def _scan(self, phases, numbers, x, own, context, collect):
        """x through the blocks of these numbers, whose kinds alternate, and {number: output}.

        `own`: the blocks' keys, rates and rows of `each`, or None for each of these.
        """
        count, depth = len(phases), len(numbers)
        scanned = depth // count * count  # the blocks of whole periods; the others follow, one by one
        names = [_join(module_name(self), i) for i in numbers]
        statics, variables = zip(*map(split, phases.values()), strict=True)
        place = mesh.placement()

        def block(phase, names, **options):
            """(x, (variables, key, rate, row)) -> (x, (statistics, taps, output if collected)) for one of a phase."""
            prefix = _join(module_name(self), ".".join(filter(None, (STACKED, list(phases)[phase]))))

            def run(x, layer):
                variables, key, rate, row = layer
                if place:
                    variables = {**variables, "params": place(prefix, variables["params"])}
                rate = 0.0 if rate is None else rate
                given = context if row is None else (*context, row)
                x, stats, captured = _call(statics[phase], names, variables, x, key, rate, given)
                return x, (stats, captured, x if collect else None)

            return jax.checkpoint(run, policy=REMAT[self.remat], **options) if self.remat is not None else run

        # the loop already keeps the compiler from merging the recomputation with the first pass
        blocks = [block(j, tuple(names[j:scanned:count]), prevent_cse=False) for j in range(count)]

        def body(x, layers):
            results = []
            for run, layer in zip(blocks, layers, strict=True):
                x, result = run(x, layer)
                results.append(result)
            return x, results

        def layers(index):
            """Each phase's variables, keys, rates and rows of `each`, `index` giving those of its blocks."""
            rows = [(v, *jax.tree.map(lambda a, j=j: a[j::count], own)) for j, v in enumerate(variables)]
            return jax.tree.map(index, rows)

        periods = depth // count
        x, results = jax.lax.scan(body, x, layers(lambda a: a if len(a) == periods else a[:periods]), length=periods)
        maps = {}
        for j, (_, captured, outputs) in enumerate(results):
            emit(captured, names[j:scanned:count], stacked=True)
            maps |= {numbers[i]: jax.tree.map(lambda m, i=i: m[i // count], outputs) for i in range(j, scanned, count)}
        stats = [result[0] for result in results]
        for i in range(scanned, depth):
            phase = i - scanned
            layer = jax.tree.map(lambda a: a[-1], layers(lambda a: a)[phase])
            x, (last, captured, maps[numbers[i]]) = block(phase, (names[i],))(x, layer)
            emit(captured, (names[i],), stacked=False)
            stats[phase] = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), stats[phase], last)
        for phase, new in zip(phases.values(), stats, strict=True):
            nnx.update(phase, *new)
        return x, maps


def _call(static, names, variables, x, key, rate, context):
    """One block as a pure function: its output, the statistics it updated, its taps."""
    block = nnx.merge(static.graphdef, *variables.values())
    with tapping(block, names) as scope:
        x = block(x, Train(key, rate) if key is not None else None, *context)
    stats = [tree for name, tree in split(block)[1].items() if name != "params"]
    return x, stats, scope.captured


def _join(prefix, name):
    return f"{prefix}.{name}" if prefix else str(name)
