"""The functional boundary: a model as (static, variables) and pure calls of it.

Modules are Flax NNX classes; whatever is jitted, differentiated or saved sees plain trees of arrays. `split` parts a
model into a hashable `Static` and its variables, `apply` calls it as a pure function.
"""

import contextlib
import contextvars
import fnmatch
import functools
import re

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.devices import batch_that_fits, out_of_memory
from vision_jax.errors import InputError, unknown
from vision_jax.names import STACKED, any_block, block_of, is_phase
from vision_jax.parameters import draw_jax


class Train:
    """Train mode, handed down every call; `None` in its place is evaluation.

    It deals out one key a use, so that the masks depend on the order of the uses alone. A stack of blocks gives each
    block a `Train` of its own, with a key split beforehand and the block's drop-path rate.

    Args:
      key: a `jax.random.key`.
      drop_path_rate: probability that a residual branch is dropped; a float, or a scalar array under scan.
    """

    def __init__(self, key, drop_path_rate=0.0):
        if key is None:
            raise InputError("train=True needs key=, a jax.random.key: dropout and drop-path draw from it")
        self._key, self._uses, self.drop_path_rate = key, 0, drop_path_rate

    def key(self):
        """The next key."""
        self._uses += 1
        return jax.random.fold_in(self._key, self._uses)


class Static:
    """A model without its arrays.

    Hashed once (a GraphDef's own hash takes milliseconds at every dispatch) and printed short (a GraphDef prints
    150 kB).
    """

    def __init__(self, graphdef, shapes, inits, name):
        self.graphdef, self.shapes, self.inits, self.name = graphdef, shapes, inits, name
        leaves, tree = jax.tree.flatten(shapes)  # a GraphDef does not know its arrays' shapes
        self._key = (graphdef, tree, tuple(leaves))
        self._hash = hash(self._key)

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        return self is other or (isinstance(other, Static) and self._hash == other._hash and self._key == other._key)

    def __repr__(self):
        return f"Static({self.name}, {self._hash & 0xFFFFFFFF:08x})"


def _collection(kind):
    """Param -> params, BatchStat -> batch_stats, PositionCache -> position_caches."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower() + "s"


def split(model):
    """A model -> (static, variables).

    Args:
      model: a module, concrete or abstract.

    Returns:
      static: hashable, fit for `jax.jit`'s static arguments and for closures.
      variables: {"params": tree, "batch_stats": tree, ...}, plain nested dicts, one collection for each kind of
        Variable. "params" and "batch_stats" are always there.
    """
    graphdef, state = nnx.split(model)
    by_kind = {nnx.Param: {}, nnx.BatchStat: {}}
    inits = {}
    for path, variable in nnx.to_flat_state(state):
        kind = variable.type
        by_kind.setdefault(kind, {})[path] = variable.get_value()
        inits[(_collection(kind), *path)] = variable.get_metadata().get("init")
    variables = {_collection(kind): _nested(flat) for kind, flat in by_kind.items()}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    return Static(graphdef, shapes, inits, type(model).__name__), variables


def _nested(flat):
    tree = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def merge(static, variables):
    """(static, variables) -> a model that holds them; the inverse of `split`."""
    return nnx.merge(static.graphdef, *variables.values())


def apply(static, variables, *args, train=False, key=None, method="__call__", capture=(), **kwargs):
    """Calls a model as a pure function.

    Args:
      static, variables: what `split` gave; the variables may be others of the same shapes.
      *args, **kwargs: the method's, images [B, H, W, C] as a rule.
      train: whether dropout, drop-path and batch statistics act as in training.
      key: a `jax.random.key`, needed when train=True.
      method: name of the method to call.
      capture: patterns (`*` matches anything) of taps to return, as "blocks.*.attn".

    Returns:
      (output, state). `state` holds the collections that the call updates ("batch_stats" ...; only when training)
      and, when capture is given, "captured": {name: array}.

    Raises:
      InputError: train=True without a key; no such method; a capture pattern that nothing matches.
    """
    model = merge(static, variables)
    if train:
        kwargs["train"] = Train(key)
    patterns = (capture,) if isinstance(capture, str) else tuple(capture)
    with _within(_Scope(model, patterns)) as scope:
        out = _method(model, method)(*args, **kwargs)
    state = {}
    if train:
        updated = split(model)[1]
        state = {name: tree for name, tree in updated.items() if name != "params"}
    if patterns:
        for pattern in patterns:
            if not fnmatch.filter(scope.offered, pattern):
                raise unknown("capture pattern", pattern, scope.offered)
        state["captured"] = scope.captured
    return out, state


def _method(model, name):
    found = getattr(model, name, None)
    if not callable(found):
        methods = [one for one in dir(type(model)) if not one.startswith("_") and callable(getattr(type(model), one))]
        raise unknown(f"method of {type(model).__name__}", name, methods)
    return found


def init(static, key, shardings=None):
    """Initial variables drawn on the devices, straight onto a mesh when given shardings.

    Args:
      static: what `split` gave, of an abstract model as a rule.
      key: a `jax.random.key`. Each leaf's values depend on it and on the leaf's name.
      shardings: a tree of shardings like the variables, or None.

    Returns:
      The variables.
    """

    def draw(key):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: draw_jax(static.inits[tuple(k.key for k in path)], path[1:], leaf, key), static.shapes
        )

    return jax.jit(draw, out_shardings=shardings)(key)


def jit(model):
    """A compiled `predict(images, **options)` of the model in evaluation mode; later changes of the model are not seen.

    The options are static: `predict(images, method="forward_features", pyramid=True)`.

    Raises:
      InputError: from predict: the images' shape or dtype; a device's memory does not suffice, with the batch for which
        it would.
    """
    static, variables = split(model)

    @functools.partial(jax.jit, static_argnums=2)
    def call(variables, images, options):
        return apply(static, variables, images, **dict(options))[0]

    def predict(images, **options):
        options = tuple(sorted(options.items()))
        try:
            return call(variables, images, options)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = error
        batch, rest = len(images), images.shape[1:]
        fits = batch_that_fits(
            lambda n: call.lower(variables, jax.ShapeDtypeStruct((n, *rest), images.dtype), options).compile(), batch
        )
        told = f"a batch of {fits} would" if fits else "not even one would: dtype=jnp.bfloat16, or a smaller img_size"
        raise InputError(f"a batch of {batch} images does not fit in the device's memory; {told}") from reason

    return predict


def replace(model, pattern, wrap):
    """Module surgery: a copy of the model in which every module whose name matches is `wrap(module)`.

    Args:
      model: a module.
      pattern: a dotted name, `*` for anything: "blocks.*.mlp.fc1". Of modules inside one another that match, the
        outermost is wrapped. Scanned blocks must stay alike, so they are named with `*` there, and a pattern of one
        block's number does not match.
      wrap: module -> module, an adapter or a quantised or pruned layer. Scanned blocks are wrapped one by one, too.

    Raises:
      InputError: nothing matches, or scanned blocks are wrapped differently.
    """
    model = nnx.merge(*nnx.split(model))
    paths = [path for path, part in nnx.iter_modules(model) if path and not isinstance(part, Phases)]
    found = {path for path in paths if fnmatch.fnmatch(any_block(path), pattern)}
    if not found:
        raise unknown("module", pattern, map(any_block, paths))
    for path in found:
        if any(path[:n] in found for n in range(1, len(path))):
            continue
        wrapped = _wrap_blocks(model, path, wrap) if STACKED in path else wrap(at(model, path))
        parent, key = at(model, path[:-1]), path[-1]
        if isinstance(key, int):
            parent[key] = wrapped
        else:
            setattr(parent, key, wrapped)
    return model


def at(model, path):
    """The part of a model, a module or a variable, that lies at a path of names and list indices."""
    return functools.reduce(lambda node, key: node[key] if isinstance(key, int) else getattr(node, key), path, model)


def _wrap_blocks(model, path, wrap):
    node = path.index(STACKED) + 1
    node += is_phase(path[node : node + 1])
    depth = jax.tree.leaves(nnx.state(at(model, path[:node])))[0].shape[0]
    static, state = nnx.split(at(model, path))
    blocks = [nnx.merge(static, jax.tree.map(lambda leaf: block_of(leaf, i), state)) for i in range(depth)]
    return stack_modules([wrap(block) for block in blocks])


def stack_modules(blocks, numbers=None):
    """Modules of one structure -> one module whose parameters have a leading axis, the blocks.

    Args:
      blocks: the modules.
      numbers: of the blocks, for the message; 0, 1, ... by default.

    Raises:
      InputError: the modules differ in more than the values of their parameters.
    """
    statics, states = zip(*map(nnx.split, blocks), strict=True)
    numbers = range(len(blocks)) if numbers is None else numbers
    for i, static in enumerate(statics):
        if static != statics[0] or _shapes(states[i]) != _shapes(states[0]):
            differ = f"block {numbers[i]} differs from block {numbers[0]}"
            raise InputError(f"scan_blocks=True needs equal blocks: {differ}; scan_blocks=False")
    return nnx.merge(statics[0], jax.tree.map(_stack, *states))


class Phases(nnx.Module):
    """Several kinds of blocks, each stacked.

    Those that alternate lie below `0of2`, the first, third, fifth, and `1of2`, the others; runs of equal ones below
    `0of1` and, if the first run is of eight blocks, `8of1`.

    Args:
      phases: {name: stacked blocks}.
    """

    def __init__(self, phases):
        for name, phase in phases.items():
            setattr(self, name, phase)
        self.order = tuple(phases)

    def named(self):
        """{name: stacked blocks}, in order."""
        return {name: getattr(self, name) for name in self.order}


def _shapes(state):
    return [leaf.shape for leaf in jax.tree.leaves(state)]


def _stack(*leaves):
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
    return jnp.stack(leaves)


class _Scope:
    """What a call knows of its modules' names, and what is captured in it.

    `prefixes` are the full names of the module called: one, or one for each block for which a scan's body stands.
    `offered`, shared by all scopes of a call, gathers the names of the taps that were met.
    """

    def __init__(self, module, patterns, prefixes=("",), offered=None):
        self.names = {id(part): any_block(path) for path, part in nnx.iter_modules(module)}
        self.patterns, self.prefixes = patterns, prefixes
        self.captured, self.offered = {}, set() if offered is None else offered

    def full(self, name):
        return [f"{prefix}.{name}".strip(".") for prefix in self.prefixes]

    def wants(self, full):
        return any(fnmatch.fnmatch(full, pattern) for pattern in self.patterns)

    def offer(self, name, make):
        self.offered.update(self.full(name))
        if any(map(self.wants, self.full(name))):
            self.captured[name] = make()


_scope = contextvars.ContextVar("scope", default=None)


@contextlib.contextmanager
def _within(scope):
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def tap(module, name, x):
    """x, which a caller may have captured under the module's name and this one: `x = tap(self, "attn", x)`."""
    offer(module, name, lambda: x)
    return x


def offer(module, name, make):
    """A tap of what the call itself does without: `make()`, called only where it is captured."""
    scope = _scope.get()
    if scope is not None and scope.patterns:
        scope.offer(f"{scope.names.get(id(module), '')}.{name}".strip("."), make)


def module_name(module):
    """The module's dotted name in the model that is being called; None outside `apply`."""
    scope = _scope.get()
    return None if scope is None else scope.names.get(id(module))


def tapping(block, names):
    """A context for a block that runs inside a traced body: gathers its taps in `.captured`, for the body to return.

    Args:
      block: the module that runs there.
      names: the names of the blocks for which the body stands: one, or all of a scan's.
    """
    outer = _scope.get()
    if outer is None:
        return _within(_Scope(block, ()))
    return _within(_Scope(block, outer.patterns, [full for name in names for full in outer.full(name)], outer.offered))


def emit(captured, names, stacked):
    """Hands what a body gathered on to the call around it: {tap's name: value}, stacked over the blocks or of one."""
    scope = _scope.get()
    for name, value in captured.items():
        for i, block in enumerate(names):
            scope.offer(f"{block}.{name}", lambda value=value, i=i: value[i] if stacked else value)
