import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import tiny
from vision_jax import functional
from vision_jax.errors import InputError
from vision_jax.functional import Train, apply, init, merge, offer, replace, split, tap
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.stack import Stack
from vision_jax.mesh import make_mesh
from vision_jax.parallel.sharding import shardings
from vision_jax.parameters import Constant, Normal, param

LAYOUTS = [{}, {"scan_blocks": True}, {"remat": "full"}, {"scan_blocks": True, "remat": "dots"}]


class PositionCache(nnx.Variable):
    pass


class Net(nnx.Module):
    """Small, and with a tap, a list, batch statistics and a kind of Variable of its own."""

    def __init__(self, width=4, act=jnp.tanh):
        self.act = act
        self.layers = nnx.List([Linear(3, width), Linear(width, 2)])
        self.norm = BatchNorm(2)
        self.cache = param((2,), Constant(7.0), kind=PositionCache)

    def __call__(self, x, train=None):
        x = tap(self, "hidden", self.act(self.layers[0](x)))
        return self.norm(self.layers[1](x), train)

    def doubled(self, x, times=2):
        return times * self(x)


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def x():
    return tiny.normal(8, 3)


def test_what_is_offered_is_made_only_where_it_is_captured():
    class Offering(Net):
        def __call__(self, x, train=None):
            offer(self, "twice", lambda: made.append(2 * x) or made[-1])
            return x

    made = []
    static, variables = split(Offering())
    apply(static, variables, 1.0)
    _, state = apply(static, variables, 1.0, capture="twi*")
    assert (made, state["captured"]) == ([2.0], {"twice": 2.0})
    with pytest.raises(InputError, match="did you mean 'twice'"):
        apply(static, variables, 1.0, capture="twic")
    assert len(made) == 1


def test_split_gives_plain_trees_by_kind(net):
    _, variables = split(net)
    assert list(variables) == ["params", "batch_stats", "position_caches"]
    assert set(variables["params"]) == {"layers", "norm"}
    assert set(variables["params"]["layers"]) == {0, 1}
    assert set(variables["batch_stats"]["norm"]) == {"mean", "var"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    _, variables = split(Linear(2, 2))
    assert variables["batch_stats"] == {}


def test_merge_is_the_inverse_of_split(net, x):
    static, variables = split(net)
    merged = merge(static, variables)
    np.testing.assert_array_equal(merged(x), net(x))
    assert split(merged)[0] == static
    shuffled = jax.tree.map(lambda a: a, dict(sorted(variables.items())))  # jit hands dicts back in the keys' order
    np.testing.assert_array_equal(merge(static, shuffled)(x), net(x))


def test_apply_changes_nothing(net, x):
    static, variables = split(net)
    before, arrays = jax.tree.map(np.array, variables), jax.tree.leaves(variables)
    out, state = apply(static, variables, x, train=True, key=jax.random.key(0))
    assert set(state) == {"batch_stats", "position_caches"}
    np.testing.assert_array_equal(state["position_caches"]["cache"], 7.0)
    assert abs(state["batch_stats"]["norm"]["mean"]).max() > 0
    tiny.assert_close(variables, before, rtol=0)
    assert all(a is b for a, b in zip(jax.tree.leaves(variables), arrays, strict=True))
    tiny.assert_close(split(net)[1], before, rtol=0)
    assert not np.allclose(out, apply(static, variables, x)[0])
    _, again = apply(static, {**variables, **state}, x, train=True, key=jax.random.key(0))
    assert (again["batch_stats"]["norm"]["mean"] != state["batch_stats"]["norm"]["mean"]).all()


def test_apply_in_evaluation_returns_no_state(net, x):
    out, state = apply(*split(net), x)
    assert state == {}
    np.testing.assert_array_equal(out, net(x))


def test_apply_calls_the_method_asked_for(net, x):
    out, _ = apply(*split(net), x, method="doubled", times=3)
    np.testing.assert_array_equal(out, 3 * net(x))
    with pytest.raises(InputError, match=r"unknown method of .* 'doubld': did you mean 'doubled'"):
        apply(*split(net), x, method="doubld")


def test_train_mode_needs_a_key(net, x):
    with pytest.raises(InputError, match="needs key="):
        apply(*split(net), x, train=True)


def test_train_deals_a_key_a_use():
    train, again = (Train(jax.random.key(3)) for _ in range(2))
    keys = [jax.random.key_data(train.key()).tobytes() for _ in range(3)]
    assert len({jax.random.key_data(jax.random.key(3)).tobytes(), *keys}) == 4
    assert jax.random.key_data(again.key()).tobytes() == keys[0]


def test_equal_models_have_equal_statics():
    a, b = (split(tiny.vit(seed=seed))[0] for seed in (0, 1))
    assert a == b
    assert hash(a) == hash(b)
    assert a == split(tiny.vit(abstract=True))[0]
    assert a != "a"


@pytest.mark.parametrize(
    "fields", [{"drop_rate": 0.1}, {"scan_blocks": True}, {"depth": 2}, {"dtype": jnp.bfloat16}, {"remat": "full"}]
)
def test_other_configs_have_other_statics(fields):
    assert split(tiny.vit(abstract=True))[0] != split(tiny.vit(abstract=True, **fields))[0]


def test_other_shapes_have_other_statics():
    # a GraphDef does not hold shapes, but `init` of a static must know them
    assert split(Net(4))[0] != split(Net(5))[0]
    assert split(Net(4, jnp.tanh))[0] != split(Net(4, jnp.sin))[0]


def test_static_prints_short():
    static = split(tiny.vit(abstract=True))[0]
    assert repr(static).startswith("Static(VisionTransformer, ")
    assert len(repr(static)) < 60


def test_equal_statics_do_not_recompile(x):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def call(static, variables, x):
        traces.append(static)
        return apply(static, variables, x)[0]

    for model in (Net(), Net(), Net(5), Net(act=jnp.sin), Net(5)):
        call(*split(model), x)
    assert len(traces) == 3


# --- init


def test_init_draws_onto_a_mesh(net):
    static, _ = split(tiny.vit(abstract=True))
    mesh = make_mesh(data=2, fsdp=4)
    places = shardings(static.shapes, mesh)
    on_mesh = init(static, jax.random.key(0), places)
    kernel = on_mesh["params"]["head"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, P("fsdp", None))
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 5)}
    assert jax.tree.map(lambda a: a.sharding, on_mesh) == places
    tiny.assert_close(on_mesh, init(static, jax.random.key(0)), rtol=0)


def test_init_does_not_depend_on_the_layout():
    plain, scanned = (init(split(tiny.vit(abstract=True, **kw))[0], jax.random.key(0)) for kw in LAYOUTS[:2])
    assert "stacked" in scanned["params"]["blocks"]
    tiny.assert_close(scanned, plain, rtol=0)
    deeper = init(split(tiny.vit(abstract=True, depth=4))[0], jax.random.key(0))
    deeper["params"]["blocks"].pop("3")
    tiny.assert_close(deeper, plain, rtol=0)


def test_init_draws_by_key_and_name():
    static, _ = split(tiny.vit(abstract=True))
    first, second = (tiny.by_name(init(static, jax.random.key(seed))) for seed in range(2))
    random = [name for name in first if name.endswith("kernel") or name.endswith("_embed")]
    assert len(random) > 12
    for name in random:
        assert (first[name] != second[name]).mean() > 0.99, name
    assert len({first[name].tobytes() for name in random}) == len(random)


def test_init_keeps_the_initialisers():
    variables = init(split(tiny.resnet(abstract=True))[0], jax.random.key(0))
    stats = tiny.by_name(variables["batch_stats"])
    assert all((value == name.endswith("var")).all() for name, value in stats.items())
    params = tiny.by_name(variables["params"])
    assert (params["stages.0.0.bn2.scale"] == 0).all()  # zero_init_last
    assert (params["stages.0.0.bn1.scale"] == 1).all()


# --- jit


def test_jit_gives_a_compiled_prediction(net, x):
    predict = functional.jit(net)
    expected = net(x)
    np.testing.assert_allclose(predict(x), expected, rtol=1e-6)
    np.testing.assert_allclose(predict(x, method="doubled", times=3), 3 * expected, rtol=1e-6)
    net.norm.bias[...] = net.norm.bias[...] + 1  # not seen
    np.testing.assert_allclose(predict(x), expected, rtol=1e-6)


# --- capture


@pytest.fixture(scope="module")
def captured():
    return _captured({})


def _captured(layout, patterns=("blocks.*",)):
    images = tiny.normal(2, 8, 8, 3)
    static, variables = split(tiny.vit(drop_path_rate=0.5, **layout))
    call = functools.partial(apply, static, train=True, key=jax.random.key(0), capture=patterns)
    return jax.jit(lambda variables, images: call(variables, images)[1])(variables, images)["captured"]


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_taps_are_the_same_for_every_layout(captured, layout):
    parts = ("attn", "attn.probabilities", "mlp", "output")
    assert set(captured) == {f"blocks.{i}.{part}" for i in range(3) for part in parts}
    tiny.assert_close(_captured(layout), captured)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_block_may_be_captured(captured, layout):
    one = _captured(layout, "blocks.1.attn")
    assert list(one) == ["blocks.1.attn"]
    tiny.assert_close(one, {"blocks.1.attn": captured["blocks.1.attn"]})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pattern_that_matches_no_tap(layout):
    with pytest.raises(InputError, match=r"unknown capture pattern 'blocks.1.atn': did you mean 'blocks.1.attn'"):
        _captured(layout, ("blocks.1.atn",))


def test_tap_is_the_identity_elsewhere(net, x):
    y = object()
    assert tap(net, "hidden", y) is y
    assert "captured" not in apply(*split(net), x, train=True, key=jax.random.key(0))[1]


# --- replace


class LowRank(nnx.Module):
    """An adapter with parameters of its own."""

    def __init__(self, inner):
        self.inner = inner
        din, dout = inner.kernel.shape
        self.down, self.up = param((din, 2), Normal(0.1)), param((2, dout), Constant(0.5))

    def __call__(self, x):
        return self.inner(x) + x @ self.down[...] @ self.up[...]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replace_wraps_every_match(layout):
    model, x = tiny.vit(**layout), tiny.normal(2, 8, 8, 3)
    before = split(model)
    adapted = replace(model, "blocks.*.mlp.fc1", LowRank)
    assert split(model)[0] == before[0]
    tiny.assert_close(split(model)[1], before[1], rtol=0)

    static, variables = split(adapted)
    leaves = tiny.by_name(variables["params"])
    for i in range(3):
        assert leaves[f"blocks.{i}.mlp.fc1.down"].shape == (16, 2)
        assert leaves[f"blocks.{i}.mlp.fc1.inner.kernel"].shape == (16, 64)
    assert not np.allclose(functional.jit(adapted)(x), functional.jit(model)(x))
    zeroed = jax.tree_util.tree_map_with_path(lambda path, a: 0 * a if path[-1].key == "up" else a, variables)
    np.testing.assert_allclose(apply(static, zeroed, x)[0], functional.jit(model)(x), rtol=1e-5, atol=1e-6)


def test_replace_gives_scanned_and_unrolled_the_same_model():
    with_adapters = [
        split(replace(tiny.vit(abstract=True, **layout), "blocks.*.mlp.fc?", LowRank))[0] for layout in LAYOUTS[:2]
    ]
    plain, scanned = (init(static, jax.random.key(0)) for static in with_adapters)
    tiny.assert_close(scanned, plain, rtol=0)


def test_replace_reaches_into_lists_and_stops_at_the_outermost(net, x):
    class Twice(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x, *args):
            return 2 * self.inner(x, *args)

    doubled = replace(net, "layers.1", Twice)
    assert isinstance(doubled.layers[1], Twice)
    assert isinstance(net.layers[1], Linear)
    blocks = replace(tiny.vit(), "blocks.1*", Twice).blocks
    assert isinstance(getattr(blocks, "1"), Twice)
    assert not isinstance(getattr(blocks, "1").inner.mlp, Twice)
    resnet = replace(tiny.resnet(abstract=True), "stages.1.0.conv1", Twice)
    assert isinstance(getattr(resnet.stages[1], "0").conv1, Twice)


def test_replace_errors():
    with pytest.raises(InputError, match=r"unknown module 'blocks.\*.mlp.fc3': did you mean 'blocks.\*.mlp.fc"):
        replace(tiny.vit(abstract=True, scan_blocks=True), "blocks.*.mlp.fc3", LowRank)
    with pytest.raises(InputError, match="unknown module"):
        replace(tiny.vit(abstract=True, scan_blocks=True), "blocks.0.mlp.fc1", LowRank)
    seen = []

    def uneven(module):
        seen.append(module)
        return LowRank(module) if len(seen) == 2 else module

    with pytest.raises(InputError, match="block 1 differs from block 0"):
        replace(tiny.vit(scan_blocks=True), "blocks.*.mlp.fc1", uneven)


def test_a_stack_in_a_list_keeps_its_names():
    class Stages(nnx.Module):
        def __init__(self, scan):
            self.stages = nnx.List([Stack(lambda _: Linear(3, 3), (0.0,) * n, scan=scan) for n in (1, 2)])

        def __call__(self, x):
            for stage in self.stages:
                x = stage(x, None)
            return x

    class Linear(nnx.Module):
        def __init__(self, din, dout):
            self.kernel = param((din, dout), Normal(1.0))

        def __call__(self, x, train=None):
            return tap(self, "output", x @ self.kernel[...])

    states = []
    for scan in (False, True):
        static, _ = split(Stages(scan))
        variables = init(static, jax.random.key(0))
        assert set(tiny.by_name(variables)) == {f"params.stages.{n}.kernel" for n in ("0.0", "1.0", "1.1")}
        states.append(apply(static, variables, tiny.normal(2, 3), capture="stages.*")[1])
    assert set(states[0]["captured"]) == {f"stages.{n}.output" for n in ("0.0", "1.0", "1.1")}
    tiny.assert_close(states[1], states[0])
