"""Models small enough to compile in a second or two, and what several tests do with them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax import names
from vision_jax.registry import create_model

VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
RESNET = {"img_size": 32, "embed_dims": (8, 16), "depths": (1, 2), "num_classes": 5}


def vit(**fields):
    return create_model("vit_tiny_patch16_224", **{**VIT, **fields})


def resnet(**fields):
    return create_model("resnet18", **{**RESNET, **fields})


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def refilled(module, dtype=np.float64):
    """The module with every variable drawn from a unit normal; variances stay positive."""
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        owner = module
        for key in path:
            owner = owner[key] if isinstance(key, int) else getattr(owner, key)
        value = normal(*variable.shape, seed=zlib.crc32(str(path).encode()), dtype=dtype)
        owner.set_value(abs(value) + 0.5 if path[-1] == "var" else value)
    return module


def unstack(tree):
    """The same tree with every stacked node replaced by its blocks, as the unrolled model holds them."""

    def is_stacked(node):
        return isinstance(node, dict) and names.STACKED in node

    def blocks(node):
        stacked, found = node[names.STACKED], {}
        phases = stacked if all(names.is_phase([name]) for name in stacked) else {"0of1": stacked}
        for name, phase in phases.items():
            first, step = map(int, names.PHASE.fullmatch(name).groups())
            for i in range(jax.tree.leaves(phase)[0].shape[0]):
                found[first + i * step] = jax.tree.map(lambda leaf, i=i: names.block_of(leaf, i), phase)
        return {str(i): found[i] for i in sorted(found)}

    return jax.tree.map(lambda node: blocks(node) if is_stacked(node) else node, tree, is_leaf=is_stacked)


def by_name(tree):
    """A tree's leaves as {unstacked name: numpy array}."""
    flat = jax.tree_util.tree_leaves_with_path(unstack(tree))
    return {names.dotted(path): np.asarray(leaf) for path, leaf in flat}


def assert_close(got, expected, rtol=1e-6):
    """Two trees, scanned or not, equal within `rtol` of each leaf's largest element."""
    got, expected = by_name(got), by_name(expected)
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].shape == expected[name].shape, name
        assert abs(got[name] - expected[name]).max() <= rtol * abs(expected[name]).max(), name
