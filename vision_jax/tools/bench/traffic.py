"""What an attention block moves between a TPU's memory and its core: kernel beside XLA path, as compiled.

The compiler counts the bytes of its own operations, copies beside a kernel's call among them; a kernel states those of
its blocks, each time that one is fetched. In that count is what the core keeps in its own memory between operations,
and a loop's body once: the neighborhoods' and the causal form's XLA paths are loops. The second count is of what
crosses to the large memory (HBM), each loop as often as it runs. Nothing runs.
"""

import fnmatch
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax.errors import unknown
from vision_jax.kernels import linear_attention, neighborhood_attention, window_attention
from vision_jax.models import ravlt, vir
from vision_jax.parallel import hlo, topology, work


class Block(NamedTuple):
    """An attention block: tokens, projected to heads, attended to, projected back.

    `size`: (D, H, W) or (H, W) of a map, or (N,). `attend`: a function of q, k, v [batch, *size, heads, head_dim] and
    of the implementation, and of the bias if `bias`, the shape of one, is given.
    """

    name: str
    batch: int
    size: tuple
    heads: int
    attend: object
    bias: tuple | None = None
    head_dim: int = 32


def _windows(name, batch, side, heads, window, shift):
    attend = functools.partial(window_attention, window_size=window, shift=shift)
    return Block(name, batch, (side, side), heads, attend, (heads, window**2, window**2))


def _neighbors(name, batch, size, heads, kernel):
    """`size`, `kernel`: one number for each axis of the map."""
    attend = functools.partial(neighborhood_attention, kernel_size=kernel)
    return Block(name, batch, size, heads, attend, (heads, *(2 * k - 1 for k in kernel)))


def _rank_augmented(name, batch, side, heads, head_dim):
    """RAVLT's: keys are weighed; queries and keys are turned, but not where they normalise."""
    return Block(name, batch, (side, side), heads, ravlt.rank_augmented_attention, head_dim=head_dim)


def _unnormalized(name, batch, side, heads, head_dim):
    """L2ViT's, which divides by itself."""

    def attend(q, k, v, implementation):
        return linear_attention(jax.nn.relu(q), jax.nn.relu(k), v, implementation=implementation)

    return Block(name, batch, (side, side), heads, attend, head_dim=head_dim)


def _retention(name, batch, tokens, heads, head_dim):
    """ViR's: causal, a decay a head."""
    attend = functools.partial(linear_attention, causal=True, log_decay=vir.log_decays(heads))
    return Block(name, batch, (tokens,), heads, attend, head_dim=head_dim)


BLOCKS = (
    _windows("Swin-B stage 1, window 7", 16, 56, 4, 7, 0),
    _windows("Swin-B stage 1, window 7, shifted", 16, 56, 4, 7, 3),
    _windows("Swin-B stage 2, window 7, shifted", 16, 28, 8, 7, 3),
    _windows("Swin-B stage 3, window 7, shifted", 16, 14, 16, 7, 3),
    _windows("Swin-T stage 1, window 7, shifted", 16, 56, 3, 7, 3),
    _windows("64 x 64 map, window 8, shifted", 16, 64, 8, 8, 4),
    _windows("256 x 256 map, window 8, shifted", 1, 256, 4, 8, 4),
    _neighbors("NAT-B stage 1, kernel 7", 16, (56, 56), 4, (7, 7)),
    _neighbors("NAT-B stage 2, kernel 7", 16, (28, 28), 8, (7, 7)),
    _neighbors("64 x 64 map, kernel 7", 4, (64, 64), 4, (7, 7)),
    _neighbors("64 x 64 map, kernel 13", 4, (64, 64), 4, (13, 13)),
    _neighbors("128 x 128 map, kernel 13", 4, (128, 128), 4, (13, 13)),
    _neighbors("256 x 256 map, kernel 7", 1, (256, 256), 4, (7, 7)),
    _neighbors("256 x 256 map, kernel 13", 4, (256, 256), 4, (13, 13)),
    _neighbors("8 x 56 x 56 video, kernel 3 x 7 x 7", 4, (8, 56, 56), 4, (3, 7, 7)),
    _rank_augmented("RAVLT-B stage 2, 64 x 64 map", 16, 64, 2, 96),
    _rank_augmented("RAVLT-B stage 2, 256 x 256 map", 1, 256, 2, 96),
    _unnormalized("L2ViT-B stage 1, 64 x 64 map", 16, 64, 4, 32),
    _unnormalized("L2ViT-B stage 1, 256 x 256 map", 1, 256, 4, 32),
    _retention("ViR-B, 4,096 tokens", 16, 4096, 12, 64),
    _retention("ViR-B, 65,536 tokens", 1, 65536, 12, 64),
)


def step(block, implementation):
    """The block's loss with its gradients, and the shapes of its arguments (bfloat16, the bias in float32)."""
    C = block.heads * block.head_dim
    shapes = [(block.batch, *block.size, C), (C, 3, block.heads, block.head_dim), (C, C)]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    shapes += [] if block.bias is None else [jax.ShapeDtypeStruct(block.bias, jnp.float32)]

    def loss(x, qkv, out, bias=None):
        q, k, v = ((x @ qkv[:, i].reshape(C, C)).reshape(*x.shape[:-1], -1, block.head_dim) for i in range(3))
        biased = {} if bias is None else {"bias": bias}
        y = block.attend(q, k, v, implementation=implementation, **biased)
        y = y.reshape(x.shape) @ out
        return (y.astype(jnp.float32) ** 2).mean()

    return jax.value_and_grad(loss, range(len(shapes))), shapes


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
      A list of dicts: "block", "batch", "xla" and "tpu" {"moved", "hbm", "temporaries": bytes}.

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
    return {
        "moved": compiled.cost_analysis()["bytes accessed"],
        "hbm": work.hbm_bytes(hlo.parse(compiled.as_text())),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def tables(results):
    """Lines: MB that XLA and the kernel move in a forward and backward pass, of which to and from HBM, temporaries."""
    counts = ("XLA, MB", "kernel, MB", "ratio")
    head = ["block", "batch", *counts, *(f"HBM: {c}" for c in counts), "temporaries of XLA, MB", "of the kernel, MB"]
    return ["", f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}", *map(_row, results)]


def _row(result):
    cells = [result["block"], str(result["batch"])]
    for what in ("moved", "hbm", "temporaries"):
        xla, kernel = result["xla"][what], result["tpu"][what]
        cells += [f"{x / 1e6:,.0f}" for x in (xla, kernel)]
        cells += [f"{kernel / xla:.2f}"] if what != "temporaries" else []
    return f"| {' | '.join(cells)} |"
