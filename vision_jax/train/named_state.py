"""A training state as a flat dict of named arrays, and back.

Checkpoints speak the one vocabulary of `vision_jax.names`: `params.blocks.3.mlp.fc1.kernel`,
`opt_state.0.mu.blocks.3.mlp.fc1.kernel`. Leaves that are stacked for `jax.lax.scan` are cut into one array a block when
a state becomes named, and joined again where the receiving state is stacked: so a run saved one way restores the other.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax.errors import InputError
from vision_jax.names import STACKED, dotted, names
from vision_jax.parallel.sharding import HOST


def to_named(state):
    """The arrays of a state by name.

    Args:
      state: any pytree of arrays and plain numbers.

    Returns:
      A dict name -> `jax.Array`, or a numpy array where the leaf was numpy or a plain number. The blocks of a stacked
      leaf are copies on its devices, sharded as the leaf is.

    Raises:
      InputError: if two leaves come to the same name.
    """
    named, on_devices = {}, {}
    for leaf_names, leaf, is_stacked in _leaves(state):
        if not is_stacked:
            named[leaf_names[0]] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        elif isinstance(leaf, jax.Array):
            on_devices[leaf_names] = leaf
        else:
            named.update(zip(leaf_names, leaf, strict=True))
    # Compiled: each array of a mesh of many processes is cut by all of them together
    for some in _calls({leaf_names: leaf.sharding for leaf_names, leaf in on_devices.items()}):
        leaves = tuple(on_devices[leaf_names] for leaf_names in some)
        shardings = tuple((_without_first_axis(leaf.sharding),) * len(leaf) for leaf in leaves)
        for leaf_names, arrays in zip(some, jax.jit(_cut, out_shardings=shardings)(leaves), strict=True):
            named.update(zip(leaf_names, arrays, strict=True))
    return named


def targets(abstract_state):
    """What to read for a state: name -> `jax.ShapeDtypeStruct` with its sharding, or an empty numpy array to fill.

    Args:
      abstract_state: the pytree to be filled. Its leaves are arrays or `jax.ShapeDtypeStruct` with a sharding, or numpy
        arrays or plain numbers, whose values do not matter.

    Raises:
      InputError: if a `ShapeDtypeStruct` has no sharding, or two leaves come to the same name.
    """
    wanted = {}
    for leaf_names, leaf, is_stacked in _leaves(abstract_state):
        if not hasattr(leaf, "sharding"):
            like = np.asarray(leaf)
            shape = like.shape[1:] if is_stacked else like.shape
            wanted.update({name: np.empty(shape, like.dtype) for name in leaf_names})
        elif leaf.sharding is None:
            raise InputError(f"abstract_state: {leaf_names[0]!r} has no sharding; say where each array is to lie")
        else:
            shape = leaf.shape[1:] if is_stacked else leaf.shape
            sharding = _without_first_axis(leaf.sharding) if is_stacked else leaf.sharding
            wanted.update({name: jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding) for name in leaf_names})
    return wanted


def from_named(named, abstract_state):
    """The inverse of `to_named`, in the structure and the placement of `abstract_state`.

    Args:
      named: the arrays that `targets(abstract_state)` asks for.
      abstract_state: as `targets` takes it.

    Returns:
      The state. A plain number comes back as the type it has in `abstract_state`.
    """
    leaves, to_stack = [], {}
    for leaf_names, like, is_stacked in _leaves(abstract_state):
        if not is_stacked:
            leaf = named[leaf_names[0]]
            leaves.append(type(like)(leaf) if isinstance(like, (bool, int, float, np.generic)) else leaf)
        elif hasattr(like, "sharding"):
            to_stack[len(leaves)] = (tuple(named[name] for name in leaf_names), like.sharding)
            leaves.append(None)
        else:
            leaves.append(np.stack([named[name] for name in leaf_names]))
    for some in _calls({index: sharding for index, (_, sharding) in to_stack.items()}):
        blocks, shardings = zip(*(to_stack[index] for index in some), strict=True)
        for index, leaf in zip(some, jax.jit(_join, out_shardings=shardings)(blocks), strict=True):
            leaves[index] = leaf
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def check_match(found, wanted, where):
    """Refuses a file of another model, naming what differs.

    Args:
      found, wanted: dicts name -> anything with `shape` and `dtype`: in the file, in the state to be filled.
      where: says which checkpoint, for the message.

    Raises:
      InputError: with the first few missing, unexpected and mis-shaped names, and how many there are of each.
    """

    def kind(x):
        return f"{np.dtype(x.dtype).name}{list(x.shape)}"

    both = [name for name in wanted if name in found and kind(found[name]) != kind(wanted[name])]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape or type": [f"{n} {kind(found[n])} in the file, {kind(wanted[n])} here" for n in both],
    }
    if any(problems.values()):
        told = [
            f"{len(lines)} {what}: " + "; ".join(lines[:5]) + ("; ..." if len(lines) > 5 else "")
            for what, lines in problems.items()
            if lines
        ]
        raise InputError(f"{where} holds another state than this run has: " + " | ".join(told))


def _leaves(tree):
    """(names, leaf, is it stacked) for each leaf, in the tree's order."""
    seen, leaves = set(), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf_names = names(path, leaf)
        for name in leaf_names:
            if name in seen:
                raise InputError(f"two leaves of the state are both called {name!r}")
            seen.add(name)
        leaves.append((leaf_names, leaf, STACKED in dotted(path).split(".")))
    return leaves


def _without_first_axis(sharding):
    """The placement of one block of a stacked leaf."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]), memory_kind=sharding.memory_kind)


def _calls(shardings):
    """Lists of keys of {key: sharding}: what the devices hold together; what their hosts hold one by one, because it
    passes through the devices, which need not have room for all of it."""
    together = [key for key, sharding in shardings.items() if sharding.memory_kind != HOST]
    return [*([together] if together else []), *([key] for key in shardings if key not in together)]


def _cut(stacked):
    return tuple(tuple(leaf[i] for i in range(len(leaf))) for leaf in jax.device_put(stacked, jax.memory.Space.Device))


def _join(blocks):
    return tuple(jnp.stack(arrays) for arrays in jax.device_put(blocks, jax.memory.Space.Device))
