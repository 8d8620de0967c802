"""Names of the leaves of a tree of variables: the one vocabulary that rules, checkpoints and weight files speak.

A leaf's name joins its path with dots: `blocks.3.mlp.fc1.kernel`. Blocks that run under `jax.lax.scan` keep their
parameters stacked along a leading axis below a node called `stacked`; such a leaf stands for one name a block, the
names that the unrolled blocks would have. Where blocks alternate, the two kinds are stacked below `stacked.0of2` and
`stacked.1of2`, every second name each; where runs of equal blocks follow one another, below `stacked.0of1` and, from
the eighth on, `stacked.8of1`. An optimiser's state holds copies of the parameters' tree, so a name found
by `re.search` matches there too.
"""

import re

import jax

STACKED = "stacked"
PHASE = re.compile(r"(\d+)of(\d+)")


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
    before, first, step, after = re.fullmatch(rf"(|.*?\.){STACKED}(?:\.{PHASE.pattern})?((?:\..*)?)", name).groups()
    first, step = int(first or 0), int(step or 1)
    return tuple(f"{before}{first + i * step}{after}" for i in range(leaf.shape[0]))


def any_block(parts):
    """A path of names in which `*` stands for the number of a stacked block."""
    parts = list(map(str, parts))
    if STACKED in parts:
        i = parts.index(STACKED)
        parts[i : i + 1 + is_phase(parts[i + 1 : i + 2])] = "*"
    return ".".join(parts)


def is_phase(parts):
    """Whether a path begins with the name of one of several kinds of stacked blocks."""
    return bool(parts) and PHASE.fullmatch(str(parts[0])) is not None


def map_named(fn, tree, *rest):
    """`jax.tree.map` of fn(names, leaf, *leaves of rest); `names` as `names()` gives them."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf, *more: fn(names(path, leaf), leaf, *more), tree, *rest)


def block_of(leaf, i):
    """Block i of a stacked leaf, an array or a shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[i]
