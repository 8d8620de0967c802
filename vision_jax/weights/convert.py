"""One map between our parameters and a reference's names and layouts; reading and writing both follow it.

A model class declares its dialects by what differs from our own dotted names, once the layers' leaves are named as in
the reference ("blocks.0.norm1.weight"):

    torch_names = {"timm": (), "hf": ((r"^head\\.", "classifier."), ...)}    # layouts of torch
    flat_names = {"hf": ...}                 # torch's, but for a class token and positions without the axes of one
    linen_names = {"big_vision": ((r"^head\\.", "head/"), ...)}              # layouts of Flax Linen
    torch_ignore = (r"relative_position_index$",)                           # derived buffers in torch files: not read
    def torch_buffers(self): ...                    # {name: array} of those that such a file must hold, for writing it
    def torch_aliases(self): ...                    # {prefix: prefixes of names that hold the same}, for writing them

Each dialect is a row of (pattern, replacement) for `re.sub`, applied in turn. A tuple of replacements stands where the
reference keeps one of our tensors as several (query, key, value); a name that stands twice in it holds two of them
joined: ("qk.", "qk.", "v."). The dialect "ours" is every model's.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from vision_jax.errors import InputError, unknown
from vision_jax.names import STACKED, names
from vision_jax.weights.layouts import FLAT, LINEN, TORCH, Rule, find_rule


class Dialect(NamedTuple):
    """A reference's names: its layers' layouts, and the renames of dotted paths."""

    name: str
    layout: dict
    renames: tuple

    def rename(self, name):
        """A dotted name with the reference's leaf -> its names there, one or several."""
        found = (name,)
        for pattern, replacements in self.renames:
            replacements = replacements if isinstance(replacements, tuple) else (replacements,)
            if re.search(pattern, found[0]):
                found = tuple(re.sub(pattern, new, old) for old in found for new in replacements)
        return found


def dialects(model):
    """The dialects of a model, {name: Dialect}; the first is the default."""
    kinds = {"torch_names": TORCH, "flat_names": FLAT, "linen_names": LINEN}
    declared = {kind: getattr(model, kind, {"timm": ()} if kind == "torch_names" else {}) for kind in kinds}
    return {
        **{
            name: Dialect(name, kinds[kind], renames) for kind, own in declared.items() for name, renames in own.items()
        },
        "ours": Dialect("ours", {}, ()),
    }


def dialect(model, name):
    """The dialect of this name.

    Raises:
      InputError: the model has none of this name.
    """
    known = dialects(model)
    if name not in known:
        raise unknown("names", name, known)
    return known[name]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our leaves (of one block, where blocks are stacked) and what it is in the reference.

    Attributes:
      name: our dotted name; path: the keys of the variable in the model.
      index: the block, where the leaf is stacked; None otherwise.
      shape: shape of our leaf.
      names: the reference's names; joined: how many of the leaf's parts each holds.
      owner: the module that holds the leaf; module: the layer that the rule is for.
      beside: {name: value} of what only the reference has.
    """

    name: str
    path: tuple
    index: int | None
    shape: tuple
    names: tuple
    joined: tuple
    owner: nnx.Module
    module: nnx.Module
    rule: Rule
    beside: dict

    def to_reference(self, array):
        """Our array -> the reference's arrays, one for each of `names`."""
        array = self.rule.to_reference(array, self.module)
        if self.rule.parts == 1:
            return (array,)
        pieces = np.split(array, np.cumsum(self.joined)[:-1])
        return tuple(piece.reshape(-1, *piece.shape[2:]) for piece in pieces)

    def to_ours(self, arrays):
        """The reference's arrays -> ours."""
        if self.rule.parts == 1:
            (array,) = arrays
        else:
            pieces = zip(arrays, self.joined, strict=True)
            array = np.concatenate([piece.reshape(parts, -1, *piece.shape[1:]) for piece, parts in pieces])
        return self.rule.to_ours(array, self.module)

    @functools.cached_property
    def reference_shapes(self):
        """The shapes of the reference's arrays."""
        return tuple(array.shape for array in self.to_reference(np.broadcast_to(np.bool_(0), self.shape)))


def entries(model, dialect):
    """Every parameter and statistic of a model, concrete or abstract, as a list of `Entry`."""
    found = []
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        leaf, stacked = variable.get_value(), STACKED in path
        chain = [model]
        for key in path[:-1]:
            chain.append(child(chain[-1], key))
        rule, module = find_rule(dialect.layout, chain, path)
        ours = names(tuple(map(jax.tree_util.DictKey, path)), leaf)
        for index, name in enumerate(ours):
            stem = name[: name.rfind(".") + 1]
            theirs = dialect.rename(stem + rule.leaf)
            joined = {new: theirs.count(new) if len(theirs) > 1 else rule.parts for new in theirs}
            found.append(
                Entry(
                    name, path, index if stacked else None, leaf.shape[1:] if stacked else leaf.shape,
                    tuple(joined), tuple(joined.values()), chain[-1], module, rule,
                    {new: value for other, value in rule.beside for new in dialect.rename(stem + other)},
                )
            )  # fmt: skip
    return found


def child(node, key):
    """The node below another, by one key of a path."""
    return node[key] if isinstance(key, int) else getattr(node, key)


def variable(model, path):
    """The variable at a path of the model."""
    return functools.reduce(child, path, model)


def state_dict(model, names="timm"):
    """A model's parameters and statistics under a reference's names, in its layouts.

    Args:
      model: a concrete model.
      names: a dialect that the model's class declares ("timm", "hf", "big_vision", ...), or "ours" for this library's
        names (unstacked where blocks are scanned) and layouts.

    Returns:
      {name: numpy array}, float32.

    Raises:
      InputError: unknown names, or an abstract model.
    """
    out = {}
    for entry in entries(model, dialect(model, names)):
        array = variable(model, entry.path).get_value()
        if isinstance(array, jax.ShapeDtypeStruct):
            raise InputError("model is abstract, it has no values: load weights, or create it with abstract=False")
        array = np.asarray(array)
        given = entry.to_reference(array if entry.index is None else array[entry.index])
        # copies: a view of a buffer that jax owns must not leave here
        out.update(zip(entry.names, (np.array(a, order="C") for a in given), strict=True))
        out.update(entry.beside)
    if names in getattr(model, "torch_names", {}):
        out.update(getattr(model, "torch_buffers", dict)())
        for prefix, others in getattr(model, "torch_aliases", dict)().items():
            held = {name.removeprefix(prefix): array for name, array in out.items() if name.startswith(prefix)}
            out.update({other + rest: array for other in others for rest, array in held.items()})
    return out
