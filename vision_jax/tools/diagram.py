"""A model drawn from what it does: the calls of one forward pass, as an SVG picture.

On the left the network from image to logits; on the right the block that it repeats most, with what the block calls, in
order, and the shapes that leave each part.
"""

import contextlib
import dataclasses
import functools
import html

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.functional import apply, split
from vision_jax.layers.stack import Stack

WIDTH, ROW, GAP, MARGIN = 430, 46, 12, 16  # of a column and of a box, in pixels
FILL = {"network": "#e8eef7", "block": "#fdf1dc"}


@dataclasses.dataclass
class Call:
    """One call of a module: its name in the model, its class, the shape it gave for one image, what it called.

    `length` is the number of blocks of a stack, 0 of any other module.
    """

    name: str
    kind: str
    shape: tuple = ()
    inner: list = dataclasses.field(default_factory=list)
    length: int = 0


def calls(model):
    """What a model calls for one image, in order: a list of `Call`s. Nothing is computed."""
    static, variables = split(model)
    root = []
    size = np.broadcast_to(model.config.img_size, 2).tolist()
    images = jax.ShapeDtypeStruct((1, *size, model.config.in_chans), jnp.float32)

    def forward(variables, images):
        with _recording(root):
            return apply(static, variables, images)[0]

    jax.eval_shape(forward, variables, images)
    return root[0].inner


@contextlib.contextmanager
def _recording(root):
    """While in force, every call of a module of this library is noted below the call that made it."""
    open_calls, names = [root], {}

    def noted(call):
        @functools.wraps(call)
        def run(module, *args, **kwargs):
            if not names:  # the first call is the model's own
                names.update({id(part): ".".join(map(str, path)) for path, part in nnx.iter_modules(module)})
            length = len(module) if isinstance(module, Stack) else 0
            own = Call(names.get(id(module), ""), type(module).__name__, length=length)
            open_calls[-1].append(own)
            open_calls.append(own.inner)
            out = call(module, *args, **kwargs)
            open_calls.pop()
            own.shape = _shape(out)
            return out

        return run

    with contextlib.ExitStack() as stack:
        for kind in _module_classes(nnx.Module):
            if "__call__" in vars(kind) and kind.__module__.startswith("vision_jax"):
                stack.callback(setattr, kind, "__call__", kind.__call__)
                kind.__call__ = noted(kind.__call__)
        yield


def _module_classes(kind):
    return {kind}.union(*map(_module_classes, kind.__subclasses__()))


def _shape(out):
    leaves = jax.tree.leaves(out)
    return tuple(leaves[0].shape[1:]) if leaves and hasattr(leaves[0], "shape") else ()


def rows(model):
    """(the network's rows, the block's rows, title of the block): (text, detail, shape) each."""
    top = calls(model)
    blocks = []
    network = [row for call in top for row in _network(call, blocks)]
    stack = max(blocks, key=lambda call: call.length, default=None)
    if stack is None:
        return network, [], ""
    block = stack.inner[-1]  # the first one may also lead to another resolution
    inside = [_row(call, block.name) for call in block.inner]
    return network, inside, f"{block.name}: {block.kind}, the last of {stack.length}"


def _network(call, blocks):
    """The rows of a call: of a stage what it holds, of a stack its block and how often, of a layer itself."""
    if call.length:
        blocks.append(call)
        kinds = list(dict.fromkeys(inner.kind for inner in call.inner))
        return [(call.name, f"{call.length} x {' | '.join(kinds)}", call.shape)]
    if any(_holds_stack(inner) for inner in call.inner):
        return [row for inner in call.inner for row in _network(inner, blocks)]
    return [_row(call)]


def _holds_stack(call):
    return bool(call.length) or any(map(_holds_stack, call.inner))


def _row(call, parent=""):
    inner = ", ".join(_below(c.name, call.name) for c in call.inner)
    return _below(call.name, parent), f"{call.kind}: {inner}" if inner else call.kind, call.shape


def _below(name, parent):
    """A name without its parent's; what a module calls may be somebody else's."""
    return name.removeprefix(f"{parent}.")


def draw(model):
    """The picture of a model, abstract or not, as the text of an SVG file."""
    network, block, title = rows(model)
    size = "x".join(map(str, np.broadcast_to(model.config.img_size, 2)))
    left = [("images", f"{size} pixels", (*np.broadcast_to(model.config.img_size, 2), model.config.in_chans)), *network]
    height = 2 * MARGIN + 28 + max(len(left), len(block)) * (ROW + GAP)
    width = (2 if block else 1) * (WIDTH + 2 * MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="13"><title>{html.escape(type(model).__name__)}</title>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_column(MARGIN, "The network, and the map that leaves each part", left, FILL["network"]),
        *(_column(3 * MARGIN + WIDTH, title, block, FILL["block"]) if block else ()),
        "</svg>",
    ]
    return "\n".join(parts)


def _column(x, title, rows, fill):
    yield f'<text x="{x}" y="{MARGIN + 12}" font-weight="bold">{html.escape(title)}</text>'
    for i, (name, detail, shape) in enumerate(rows):
        y = MARGIN + 28 + i * (ROW + GAP)
        if i:
            yield f'<path d="M {x + WIDTH / 2} {y - GAP} v {GAP}" stroke="#555555" fill="none"/>'
        yield f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{ROW}" rx="5" fill="{fill}" stroke="#888888"/>'
        yield f'<text x="{x + 10}" y="{y + 19}" font-family="monospace">{html.escape(name)}</text>'
        yield f'<text x="{x + 10}" y="{y + 37}" fill="#444444">{html.escape(_cut(detail))}</text>'
        sizes = " x ".join(map(str, shape))
        yield f'<text x="{x + WIDTH - 10}" y="{y + 19}" text-anchor="end">{sizes}</text>'


def _cut(text, most=64):
    return text if len(text) <= most else text[: most - 3] + "..."
