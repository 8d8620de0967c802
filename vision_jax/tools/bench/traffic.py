"""What an attention block moves between a TPU's memory and its core: kernel beside XLA path, as compiled.

The compiler counts the bytes of its own operations, copies beside a kernel's call among them; a kernel states those of
its blocks, each time that one is fetched. Nothing runs.
"""

import fnmatch
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax.errors import unknown
from vision_jax.kernels import neighborhood_attention, window_attention
from vision_jax.parallel import topology


class Block(NamedTuple):
    """An attention block: a map of H x W tokens, projected to heads of 32 channels, attended to, projected back."""

    name: str
    batch: int
    size: tuple
    heads: int
    attend: object
    bias: tuple


def _windows(name, batch, side, heads, window, shift):
    attend = functools.partial(window_attention, window_size=window, shift=shift)
    return Block(name, batch, (side, side), heads, attend, (heads, window**2, window**2))


def _neighbors(name, batch, side, heads, kernel):
    attend = functools.partial(neighborhood_attention, kernel_size=kernel)
    return Block(name, batch, (side, side), heads, attend, (heads, 2 * kernel - 1, 2 * kernel - 1))


BLOCKS = (
    _windows("Swin-B stage 1, window 7", 16, 56, 4, 7, 0),
    _windows("Swin-B stage 1, window 7, shifted", 16, 56, 4, 7, 3),
    _windows("Swin-B stage 2, window 7, shifted", 16, 28, 8, 7, 3),
    _windows("Swin-B stage 3, window 7, shifted", 16, 14, 16, 7, 3),
    _windows("Swin-T stage 1, window 7, shifted", 16, 56, 3, 7, 3),
    _windows("64 x 64 map, window 8, shifted", 16, 64, 8, 8, 4),
    _windows("256 x 256 map, window 8, shifted", 1, 256, 4, 8, 4),
    _neighbors("NAT-B stage 1, kernel 7", 16, 56, 4, 7),
    _neighbors("NAT-B stage 2, kernel 7", 16, 28, 8, 7),
    _neighbors("64 x 64 map, kernel 7", 4, 64, 4, 7),
    _neighbors("64 x 64 map, kernel 13", 4, 64, 4, 13),
    _neighbors("256 x 256 map, kernel 7", 1, 256, 4, 7),
)


def step(block, implementation):
    """The block's loss with its gradients, and the shapes of its arguments (bfloat16, the bias in float32)."""
    C = 32 * block.heads
    shapes = [
        jax.ShapeDtypeStruct((block.batch, *block.size, C), jnp.bfloat16),
        jax.ShapeDtypeStruct((C, 3, block.heads, 32), jnp.bfloat16),
        jax.ShapeDtypeStruct((C, C), jnp.bfloat16),
        jax.ShapeDtypeStruct(block.bias, jnp.float32),
    ]

    def loss(x, qkv, out, bias):
        q, k, v = ((x @ qkv[:, i].reshape(C, C)).reshape(*x.shape[:3], -1, 32) for i in range(3))
        y = block.attend(q, k, v, bias=bias, implementation=implementation)
        y = y.reshape(x.shape) @ out
        return (y.astype(jnp.float32) ** 2).mean()

    return jax.value_and_grad(loss, (0, 1, 2, 3)), shapes


def add_arguments(parser):
    """The options of the subcommand."""
    parser.add_argument("topology", nargs="?", default="v6e:2x4", help="of a TPU, as v6e:2x4: one of its chips")
    parser.add_argument("--blocks", nargs="+", metavar="NAME", default=["*"], help="names or wildcard patterns; all")


def measure(args, threads, tell=print):
    """Compiles what the arguments ask for.

    Args:
      args: see `add_arguments`.
      threads: not used: nothing runs.
      tell: called with a line about each block.

    Returns:
      A list of dicts: "block", "batch", "xla" and "tpu" {"moved", "temporaries": bytes}.

    Raises:
      InputError: an unknown topology, or no block of a name.
    """
    mesh = topology.make_mesh(args.topology)
    found = {name: [b for b in BLOCKS if fnmatch.fnmatch(b.name, name)] for name in args.blocks}
    for name, blocks in found.items():
        if not blocks:
            raise unknown("block", name, [block.name for block in BLOCKS])
    results = []
    for block in dict.fromkeys(itertools.chain(*found.values())):
        results.append({"block": block.name, "batch": block.batch})
        results[-1] |= {implementation: _bytes(block, implementation, mesh) for implementation in ("xla", "tpu")}
        tell(_row(results[-1]))
    return results


def _bytes(block, implementation, mesh):
    f, shapes = step(block, implementation)
    place = NamedSharding(mesh, PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s in shapes]
    with jax.set_mesh(mesh):
        compiled = jax.jit(f).lower(*shapes).compile()
    moved = compiled.cost_analysis()["bytes accessed"]
    return {"moved": moved, "temporaries": compiled.memory_analysis().temp_size_in_bytes}


def tables(results):
    """Lines: MB moved by XLA and by the kernel in a forward and backward pass, their ratio, temporaries."""
    head = "| block | batch | XLA, MB | kernel, MB | ratio | temporaries of XLA, MB | of the kernel, MB |"
    return ["", head, "|---|--:|--:|--:|--:|--:|--:|", *map(_row, results)]


def _row(result):
    xla, kernel = result["xla"], result["tpu"]
    figures = [f"{x / 1e6:,.0f}" for x in (xla["moved"], kernel["moved"], xla["temporaries"], kernel["temporaries"])]
    figures.insert(2, f"{kernel['moved'] / xla['moved']:.2f}")
    return f"| {result['block']} | {result['batch']} | {' | '.join(figures)} |"
