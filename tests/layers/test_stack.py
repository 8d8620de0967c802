import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from vision_jax.errors import InputError
from vision_jax.functional import apply, split, tap
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.stack import Stack
from vision_jax.parameters import Normal, abstract_parameters
from vision_jax.registry import fill

B, C = 16, 6
RATES = (0.0, 0.2, 0.4, 0.6)
RUNS = [(scan, remat) for scan in (False, True) for remat in (None, "full", "dots", "dots_no_batch")]


class Noisy(nnx.Module):
    """A block with everything that scan and remat could get wrong: batch statistics, dropout, drop-path, taps."""

    def __init__(self, drop):
        self.drop = drop
        self.fc, self.norm = Linear(C, C, init=Normal(0.5)), BatchNorm(C)

    def __call__(self, x, train=None):
        y = self.norm(jnp.tanh(self.fc(x)), train)
        y = y * tap(self, "dropout", dropout(jnp.ones(x.shape), self.drop, train))
        x = x + y * tap(self, "path", drop_path(jnp.ones(x.shape), train))
        return x + 0.1 * tap(self, "last", dropout(jnp.ones(x.shape), self.drop, train))


class Net(nnx.Module):
    def __init__(self, scan=False, remat=None, drop=0.3, rates=RATES, period=1):
        drops = [drop / (1 + i % period) for i in range(len(rates))]
        self.stages = nnx.List([Stack(lambda i: Noisy(drops[i]), rates, period=period, scan=scan, remat=remat)])

    def __call__(self, x, train=None):
        return self.stages[0](x, train)


def _build(net=Net, **fields):
    with abstract_parameters():
        model = net(**fields)
    return split(fill(model))


def _train(net=Net, **fields):
    """Loss, gradients and state of one call in train mode, with every mask captured."""
    static, variables = _build(net, **fields)

    @jax.jit
    def run(params, stats, x, key):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            out, state = apply(static, variables, x, train=True, key=key, capture="*")
            return jnp.square(out).mean(), state

        return jax.value_and_grad(loss, has_aux=True)(params)

    x = 2 + tiny.normal(B, C)
    (loss, state), grads = run(variables["params"], variables["batch_stats"], x, jax.random.key(1))
    return loss, grads, state


@pytest.fixture(scope="module")
def plain():
    return _train()


@pytest.mark.parametrize(("scan", "remat"), RUNS[1:])
def test_scan_and_remat_change_nothing(plain, scan, remat):
    loss, grads, state = _train(scan=scan, remat=remat)
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    tiny.assert_close(grads, plain[1])
    tiny.assert_close(state["batch_stats"], plain[2]["batch_stats"])
    assert state["captured"].keys() == plain[2]["captured"].keys()
    for name, mask in plain[2]["captured"].items():
        np.testing.assert_array_equal(state["captured"][name], mask)


@pytest.mark.parametrize(("period", "depth", "remat"), [(2, 4, None), (2, 5, "full"), (3, 5, None), (3, 2, "full")])
def test_blocks_that_alternate(period, depth, remat):
    fields = dict(period=period, rates=(0.0, 0.2, 0.4, 0.6, 0.8)[:depth])
    loss, grads, state = _train(**fields)
    scanned_loss, scanned_grads, scanned_state = _train(scan=True, remat=remat, **fields)
    np.testing.assert_allclose(scanned_loss, loss, rtol=1e-6)
    tiny.assert_close(scanned_grads, grads)
    tiny.assert_close(scanned_state["batch_stats"], state["batch_stats"])
    assert scanned_state["captured"].keys() == state["captured"].keys()
    for name, mask in state["captured"].items():
        np.testing.assert_array_equal(scanned_state["captured"][name], mask)
    model = Net(scan=True, **fields)
    x = tiny.normal(B, C)
    out, maps = model.stages[0](x, None, collect=range(depth))
    assert len(maps) == depth
    np.testing.assert_array_equal(maps[-1], out)
    np.testing.assert_array_equal(model.stages[0](x, None, collect=(depth - 1, 0))[1][1], maps[0])


def test_runs_of_blocks():
    """Blocks that differ along the stack: as many scans as runs, and nothing else changes."""
    runs = (1, 3, 2)

    class Runs(Net):
        def __init__(self, scan=False, remat=None):
            drops = (0.1, 0.3, 0.3, 0.3, 0.5, 0.5)
            rates = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
            self.stages = nnx.List([Stack(lambda i: Noisy(drops[i]), rates, runs=runs, scan=scan, remat=remat)])

    loss, grads, state = _train(Runs)
    scanned_loss, scanned_grads, scanned_state = _train(Runs, scan=True, remat="full")
    np.testing.assert_allclose(scanned_loss, loss, rtol=1e-6)
    assert scanned_grads["stages"][0]["stacked"].keys() == {"0of1", "1of1", "4of1"}
    tiny.assert_close(scanned_grads, grads)
    tiny.assert_close(scanned_state["batch_stats"], state["batch_stats"])
    assert scanned_state["captured"].keys() == state["captured"].keys()
    for name, mask in state["captured"].items():
        np.testing.assert_array_equal(scanned_state["captured"][name], mask)
    models = [nnx.merge(s.graphdef, *v.values()) for s, v in (_build(Runs, scan=scan) for scan in (True, False))]
    maps, wanted = (model.stages[0](tiny.normal(B, C), None, collect=(5, 0, 3))[1] for model in models)
    for ours, theirs in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_every_block_has_its_own_masks_and_rate(plain):
    captured = plain[2]["captured"]
    assert len({captured[f"stages.0.{i}.dropout"].tobytes() for i in range(len(RATES))}) == len(RATES)
    for i, rate in enumerate(RATES):
        kept = np.float32(1) / (np.float32(1) - np.float32(rate))
        values = set(np.unique(captured[f"stages.0.{i}.path"]).tolist())
        assert values == ({0.0, kept.item()} if rate else {1.0})


def test_statistics_move(plain):
    stats = tiny.by_name(plain[2]["batch_stats"])
    assert len(stats) == 2 * len(RATES)
    assert all(abs(value - name.endswith("var")).min() > 1e-4 for name, value in stats.items())


@pytest.mark.parametrize("scan", [False, True])
def test_a_rate_of_zero_consumes_its_key(plain, scan):
    without_dropout = _train(scan=scan, drop=0.0)[2]["captured"]
    without_paths = _train(scan=scan, rates=(0.0,) * 4)[2]["captured"]
    for i in range(len(RATES)):
        for name, other in (("path", without_dropout), ("dropout", without_paths), ("last", without_paths)):
            name = f"stages.0.{i}.{name}"
            np.testing.assert_array_equal(other[name], plain[2]["captured"][name])
        assert (without_dropout[f"stages.0.{i}.dropout"] == 1).all()
        assert (without_paths[f"stages.0.{i}.path"] == 1).all()


@pytest.mark.parametrize(("scan", "remat"), RUNS)
def test_outputs_of_chosen_blocks(scan, remat):
    static, variables = _build(scan=scan, remat=remat)
    model = nnx.merge(static.graphdef, *variables.values())
    x = tiny.normal(B, C)
    out, maps = model.stages[0](x, None, collect=(3, 0))
    np.testing.assert_array_equal(maps[0], out)
    shorter, _ = split(fill(_abstract(rates=(0.0,))))
    first, _ = apply(
        shorter, {"params": _first(variables["params"]), "batch_stats": _first(variables["batch_stats"])}, x
    )
    np.testing.assert_allclose(maps[1], first, rtol=1e-6)


def _abstract(**fields):
    with abstract_parameters():
        return Net(**fields)


def _first(tree):
    stack = tree["stages"][0]
    return {"stages": {0: {"0": jax.tree.map(lambda a: a[0], stack["stacked"]) if "stacked" in stack else stack["0"]}}}


@pytest.mark.parametrize("remat", [None, "full", "dots", "dots_no_batch"])
def test_a_scanned_program_does_not_grow_with_depth(remat):
    def size(depth, scan):
        static, variables = split(
            tiny.vit(abstract=True, depth=depth, scan_blocks=scan, remat=remat, drop_path_rate=0.1)
        )

        def loss(params, x, key):
            return apply(static, {"params": params, "batch_stats": {}}, x, train=True, key=key)[0].sum()

        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        args = variables["params"], images, jax.eval_shape(lambda: jax.random.key(0))
        return len(jax.jit(jax.grad(loss)).lower(*args).as_text())

    assert size(48, scan=True) <= 1.1 * size(12, scan=True)
    assert size(6, scan=False) > 1.5 * size(3, scan=False)  # the measure sees what it is to see


class Group(nnx.Module):
    def __init__(self, scan, remat):
        self.inner = Stack(lambda _: Noisy(0.3), RATES[:2], scan=scan, remat=remat)

    def __call__(self, x, train=None):
        return tap(self, "output", self.inner(x, train))


class Groups(nnx.Module):
    def __init__(self, scan, remat):
        self.outer = Stack(lambda _: Group(scan, remat), (0.0, 0.0), scan=scan, remat=remat)

    def __call__(self, x, train=None):
        return self.outer(x, train)


@pytest.mark.parametrize(("scan", "remat"), [(False, "full"), (True, None)])
def test_stacks_in_stacks_name_their_taps(scan, remat):
    captured = []
    for arguments in ((False, None), (scan, remat)):
        static, variables = split(Groups(*arguments))
        variables = jax.tree.map(lambda a: jnp.full(a.shape, 0.1), variables)
        patterns = ("outer.1.inner.0.path", "outer.*.output")
        _, state = apply(static, variables, tiny.normal(B, C), train=True, key=jax.random.key(0), capture=patterns)
        captured.append(state["captured"])
    assert set(captured[0]) == {"outer.1.inner.0.path", "outer.0.output", "outer.1.output"}
    tiny.assert_close(captured[1], captured[0])


def test_context_and_trees_pass_through():
    class Pair(nnx.Module):
        def __init__(self):
            self.fc = Linear(C, C)

        def __call__(self, x, train, shift):
            return x[0] + shift, self.fc(x[1])

    for scan, remat in RUNS:
        out = Stack(lambda _: Pair(), (0.0,) * 3, scan=scan, remat=remat)((jnp.zeros(C), jnp.ones(C)), None, 2.0)
        np.testing.assert_array_equal(out[0], 6.0)


def test_each_block_gets_its_own_row():
    """After the context, in order, where a last period is incomplete too."""

    class Horner(nnx.Module):
        def __call__(self, x, train, shift, row):
            return 10 * x + shift + row["a"]

    for (scan, remat), period in itertools.product(RUNS, (1, 2)):
        stack = Stack(lambda _: Horner(), (0.0,) * 3, scan=scan, remat=remat, period=period)
        np.testing.assert_array_equal(stack(jnp.zeros(()), None, 5.0, each={"a": jnp.arange(3.0)}), 567.0)


def test_no_blocks():
    np.testing.assert_array_equal(Stack(None, (), scan=True)(jnp.ones(3)), 1.0)


def test_errors():
    with pytest.raises(InputError, match="unknown remat policy 'dot': did you mean 'dots'"):
        Stack(lambda _: Noisy(0.0), RATES, remat="dot")
    with pytest.raises(InputError, match="block 2 differs from block 0; scan_blocks=False"):
        Stack(lambda i: Noisy(0.1 if i == 2 else 0.0), RATES, scan=True)
    with pytest.raises(InputError, match="block 4 differs from block 0"):
        Stack(lambda i: Noisy(0.1 if i in (1, 3, 4) else 0.0), (0.0,) * 5, period=2, scan=True)
    with pytest.raises(InputError, match="block 1 differs from block 0"):
        Stack(lambda i: Linear(2, 2 + i), RATES, scan=True)
