"""Where every array of the training state lies on the mesh: rules from name patterns to placements.

Models carry no annotations. A rule is (regular expression searched in a leaf's name, placement); the first that
matches decides, for parameters and for the optimiser's and the average's copies of them alike. Placements:

- "replicate": whole on every device.
- "fsdp": the longest dimension that divides is split over the fsdp axis.
- "tensor:AXIS": dimension AXIS (negative: from the end) is split over the tensor axis, and another as "fsdp" says. The
  axis counts without the leading one of scanned blocks; where a leaf has no such dimension it is not split so.
- "heads:AXIS": the same, if the tensor axis divides the heads of the attention that the leaf belongs to. Where it does
  not, nothing of that attention is split over it: half a head on a device would have to be gathered for the scores.

Kernels are stored split and gathered where they are used (fully sharded data parallelism: ZeRO, arXiv:1910.02054,
stage 3); heads and hidden features stay split in use (tensor parallelism: Megatron-LM, arXiv:1909.08053).
"""

import re

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vision_jax.errors import InputError, unknown
from vision_jax.mesh import BATCH, FSDP, TENSOR, constrain, fit
from vision_jax.names import dotted, is_stacked, names

HOST = "pinned_host"  # JAX's name of the memory of a device's host

_HEADS = r"\b(q?kvo?|infuse\.v)"  # projections stored [C, parts, heads, head_dim]

RULES = (
    # between the convolutions of a ResNet, which every device computes whole: so is its attention
    (r"\bself_attn\.q?kv\.kernel$", "fsdp"),
    # CoaT convolves the values of several heads at a time, in shares that no device's heads are
    (r"\b(serial|parallel)_blocks\d?\.\w+\.attn\d?\.(qkv|proj)\.", "fsdp"),
    (rf"{_HEADS}\.(kernel|bias)$", "tensor:-2"),
    (r"\battn(_pool)?\.q\.(kernel|bias)$", "heads:-1"),  # [C, heads * head_dim]
    (r"\b(attn(_pool|_block|_grid)?|gather|infuse)\.proj\.kernel$", "heads:-2"),
    # MambaOut cuts gate, identity and rest from one projection, and devices would hold parts of two of them
    (r"\bblocks\.\w+\.(fc1\.(kernel|bias)|fc2\.kernel)$", "fsdp"),
    (r"\bfc1\.kernel$", "tensor:-1"),
    (r"\bfc1\.bias$", "tensor:-1"),
    (r"\bfc2\.kernel$", "tensor:-2"),
    (r"\.(bias|scale|gamma|mean|var|count|step)$", "replicate"),
    (r"", "fsdp"),
)


def batch_sharding(mesh):
    """The placement of batches: examples split over (data, fsdp)."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh):
    """The placement of what every device holds whole."""
    return NamedSharding(mesh, P())


def spec(path, leaf, mesh, rules=RULES, heads=0):
    """The PartitionSpec of one leaf: the first rule that matches its name, as far as mesh and shape allow it.

    `heads`: of the attention that the leaf belongs to, 0 for none.
    """
    name = names(path, leaf)[0]
    pattern, placement = next(rule for rule in (*rules, *RULES) if re.search(rule[0], name))
    axes = [None] * leaf.ndim
    first = 1 if is_stacked(path) else 0  # the blocks of a scan are never split over devices
    if split := re.fullmatch(r"(tensor|heads):(-?\d+)", placement):
        axis = int(split[2])
        axis += leaf.ndim if axis < 0 else first
        whole_heads = split[1] == "tensor" or (heads > 0 and heads % mesh.shape[TENSOR] == 0)
        if first <= axis < leaf.ndim and whole_heads:
            axes[axis] = TENSOR
    elif placement not in ("fsdp", "replicate"):
        raise unknown(f"placement for {pattern!r}", placement, ("fsdp", "replicate", "tensor:AXIS", "heads:AXIS"))
    axes = list(fit(axes, leaf.shape, mesh))
    if placement != "replicate":
        free = [i for i in range(first, leaf.ndim) if axes[i] is None and leaf.shape[i] % mesh.shape[FSDP] == 0]
        if free:
            axes[max(free, key=lambda i: leaf.shape[i])] = FSDP
    return P(*axes)


def _owner(path):
    """The name of the layer above the one that a leaf belongs to: of an attention for its projections."""
    return dotted(path[:-2])


def _heads(tree):
    """The name of each attention -> its heads, from its keys' kernels [..., C, parts, heads, head_dim]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_owner(path): leaf.shape[-2] for path, leaf in leaves if re.search(rf"{_HEADS}\.kernel$", dotted(path))}


def _map(fn, tree):
    """A tree of fn(path, leaf, heads of the attention that the leaf belongs to, or 0)."""
    heads = _heads(tree)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(path, leaf, heads.get(_owner(path), 0)), tree)


def shardings(tree, mesh, rules=RULES):
    """A tree of `NamedSharding` like the tree of arrays or shapes."""
    return _map(lambda path, leaf, heads: NamedSharding(mesh, spec(path, leaf, mesh, rules, heads)), tree)


def gather(params, mesh, rules=RULES, prefix=""):
    """Parameters as they are used: whole over the fsdp axis, still split over the tensor axis.

    Stacked ones are left as they lie, unless `prefix` names a stack: then `params` is one layer of it, inside the
    scan's body, and is gathered there, one layer at a time.
    """

    def one(path, leaf, heads):
        if not prefix and is_stacked(path):
            return leaf
        path = (*(jax.tree_util.DictKey(part) for part in prefix.split(".")), *path) if prefix else path
        whole = jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype) if prefix else leaf
        axes = [axis if axis == TENSOR else None for axis in spec(path, whole, mesh, rules, heads)]
        return constrain(leaf, *(axes[1:] if prefix else axes))

    return _map(one, params)


def constrain_tree(tree, mesh, rules=RULES):
    """Asks the compiler to lay gradients out as their parameters are stored."""
    return _map(lambda path, leaf, heads: constrain(leaf, *spec(path, leaf, mesh, rules, heads)), tree)


def check_batch(batch_size, mesh, accumulate=1, what="data.batch_size"):
    """Raises InputError unless a batch divides over the devices that hold examples, times the accumulation."""
    parts = mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]] * accumulate
    if batch_size % parts:
        low, high = batch_size // parts * parts, -(-batch_size // parts) * parts
        near = " and ".join(str(n) for n in (low, high) if n)
        raise InputError(
            f"{what}={batch_size} is not divisible by {parts} (mesh data={mesh.shape[BATCH[0]]} x "
            f"fsdp={mesh.shape[BATCH[1]]} x accumulate={accumulate}); the nearest: {near}"
        )
