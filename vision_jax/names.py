"""Names of the leaves of a tree of variables: the one vocabulary that rules, checkpoints and weight files speak.

A leaf's name joins its path with dots: `blocks.3.mlp.fc1.kernel`. Blocks that run under `jax.lax.scan` keep their
parameters stacked along a leading axis below a node called `stacked`; such a leaf stands for one name a block, the
names that the unrolled blocks would have. An optimiser's state holds copies of the parameters' tree, so a name found
by `re.search` matches there too.
"""

import re

import jax

STACKED = "stacked"


def dotted(path):
    """A key path of `jax.tree_util` -> its parts joined by dots, as they lie in the tree."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def is_stacked(path):
    """Whether a leaf at this path holds the parameters of several blocks along its leading axis."""
    return STACKED in dotted(path).split(".")


def names(path, leaf):
    """The names that a leaf stands for: one, or one a block where the leaf is stacked.

    Args:
      path: key path of the leaf.
      leaf: the leaf, or its shape; its leading axis counts the blocks when stacked.

    Returns:
      A tuple of names. `blocks.stacked.norm1.scale` of shape [2, C] gives `blocks.0.norm1.scale` and
      `blocks.1.norm1.scale`.
    """
    name = dotted(path)
    if not is_stacked(path):
        return (name,)
    before, after = re.split(rf"(?:^|(?<=\.)){STACKED}(?=\.|$)", name, maxsplit=1)
    return tuple(f"{before}{i}{after}" for i in range(leaf.shape[0]))


def map_named(fn, tree, *rest):
    """`jax.tree.map` of fn(names, leaf, *leaves of rest); `names` as `names()` gives them."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf, *more: fn(names(path, leaf), leaf, *more), tree, *rest)


def block_of(leaf, i):
    """Block i of a stacked leaf, an array or a shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[i]
