import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey

import tiny
from vision_jax.errors import InputError
from vision_jax.functional import init, split
from vision_jax.mesh import make_mesh
from vision_jax.parallel import processes, sharding
from vision_jax.train import step


def _spec(name, shape, rules=sharding.RULES, heads=0, **sizes):
    path = tuple(map(DictKey, name.split(".")))
    return sharding.spec(path, jax.ShapeDtypeStruct(shape, jnp.float32), make_mesh(**sizes), rules, heads)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.attn.qkv.kernel", (16, 3, 2, 8), P("fsdp", None, "tensor", None)),
        ("blocks.0.attn.qkv.kernel", (16, 3, 3, 8), P("fsdp", None, None, None)),  # three heads on two devices
        ("blocks.0.attn.proj.kernel", (16, 18), P(None, "fsdp")),  # of an attention without known heads
        ("stages.0.blocks.stacked.fc1.kernel", (3, 16, 64), P(None, None, "fsdp")),
        ("blocks.0.mlp.fc1.kernel", (16, 64), P("fsdp", "tensor")),
        ("blocks.0.mlp.fc1.bias", (64,), P("tensor")),
        ("blocks.0.mlp.fc2.kernel", (64, 16), P("tensor", "fsdp")),
        ("blocks.0.mlp.fc2.bias", (16,), P(None)),
        ("blocks.0.norm1.scale", (16,), P(None)),
        ("bn1.mean", (64,), P(None)),
        ("head.kernel", (16, 10), P("fsdp", None)),
        ("head.kernel", (3, 5), P(None, None)),
        ("conv1.kernel", (7, 7, 3, 64), P(None, None, None, "fsdp")),
        ("stages.0.0.conv1.kernel", (3, 3, 64, 128), P(None, None, None, "fsdp")),
        ("xfc1.kernel", (16, 64), P(None, "fsdp")),  # another layer's name
        ("step", (), P()),
        ("blocks.stacked.mlp.fc1.kernel", (4, 16, 64), P(None, "fsdp", "tensor")),
        ("blocks.stacked.gate", (64, 4), P(None, "fsdp")),  # the blocks are never split
        ("blocks.stacked.norm1.scale", (64, 16), P(None, None)),
    ],
)
def test_rules(name, shape, expected):
    for prefix in ("", "params.", "ema.params.", "opt_state.0.mu."):
        assert _spec(prefix + name, shape, data=2, fsdp=2, tensor=2) == expected


@pytest.mark.parametrize(("heads", "axis"), [(4, "tensor"), (3, None)])
def test_an_attention_is_split_by_whole_heads(heads, axis):
    for name, shape, expected in (
        ("attn.q.kernel", (24, 24), P("fsdp", axis) if axis else P("fsdp", None)),
        ("attn_pool.q.bias", (24,), P(axis or "fsdp")),
        ("blocks.stacked.attn.proj.kernel", (3, 24, 24), P(None, axis, "fsdp") if axis else P(None, "fsdp", None)),
    ):
        assert _spec(name, shape, heads=heads, data=2, fsdp=2, tensor=2) == expected
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    attn = {"kv": {"kernel": jnp.zeros((24, 2, heads, 8))}, "proj": {"kernel": jnp.zeros((24, 24))}}
    trees = {"params": {"blocks": {"0": {"attn": attn}}}, "mu": {"attn_pool": attn}}
    for path, place in jax.tree_util.tree_leaves_with_path(sharding.shardings(trees, mesh)):
        assert ("tensor" in place.spec) == bool(axis), path


def test_rules_of_a_config_come_first():
    rules = ((r"head\.kernel$", "tensor:1"), *sharding.RULES)
    assert _spec("head.kernel", (16, 10), rules, fsdp=4, tensor=2, data=1) == P("fsdp", "tensor")
    assert _spec("blocks.stacked.gate", (4, 16, 10), (("gate", "tensor:0"),), fsdp=4, tensor=2, data=1) == P(
        None, "tensor", None
    )
    assert _spec("norm.scale", (16,), (("scale", "fsdp"),), fsdp=4) == P("fsdp")
    assert _spec("norm.scale", (16,), (("scale", "tensor:1"),), tensor=8, data=1) == P("fsdp")
    assert _spec("head.kernel", (16, 10), ((r"nothing", "replicate"),), fsdp=4) == P("fsdp", None)
    with pytest.raises(InputError, match=r"unknown placement for 'head' 'tensor:x': did you mean 'tensor:AXIS'"):
        _spec("head.kernel", (16, 10), (("head", "tensor:x"),))
    with pytest.raises(InputError, match=r"unknown placement for 'head' 'replicated': did you mean 'replicate'"):
        _spec("head.kernel", (16, 10), (("head", "replicated"),))


def _state(mesh, **fields):
    static, _ = split(tiny.vit(abstract=True, **fields))
    optimizer = optax.adamw(1e-3)
    draw = functools.partial(step.initial_state, optimizer=optimizer, average=True)
    shapes = jax.eval_shape(draw, static.shapes)
    places = sharding.shardings(shapes, mesh)
    return jax.jit(lambda key: draw(init(static, key)), out_shardings=places)(jax.random.key(0))


def _shards(array):
    shapes = {shard.data.shape for shard in array.addressable_shards}
    assert len(array.addressable_shards) == 8
    assert len(shapes) == 1
    return shapes.pop()


@pytest.mark.parametrize("scan", [False, True])
def test_the_state_really_is_sharded(scan):
    state = _state(make_mesh(data=2, fsdp=4), scan_blocks=scan)
    adam = state["opt_state"][0]
    for tree in (state["params"], state["ema"]["params"], adam.mu, adam.nu):
        block, lead = (tree["blocks"]["stacked"], (3,)) if scan else (tree["blocks"]["1"], ())
        assert _shards(block["mlp"]["fc1"]["kernel"]) == (*lead, 4, 64)  # fc1's last dimension is the tensor axis's
        assert _shards(block["attn"]["qkv"]["kernel"]) == (*lead, 4, 3, 2, 8)
        assert _shards(block["norm1"]["scale"]) == (*lead, 16)
        assert _shards(tree["pos_embed"]) == (1, 5, 4)
        held = sum(np.prod(_shards(leaf)) for leaf in jax.tree.leaves(tree))
        assert held < 0.3 * sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert _shards(adam.count) == ()


def test_tensor_parallelism_splits_the_heads():
    state = _state(make_mesh(data=2, fsdp=2, tensor=2))
    block = state["params"]["blocks"]["0"]
    qkv = block["attn"]["qkv"]["kernel"]
    assert _shards(qkv) == (8, 3, 1, 8)  # one of two heads, half of the channels
    assert {shard.index[2].start for shard in qkv.addressable_shards} == {0, 1}
    assert _shards(block["mlp"]["fc1"]["bias"]) == (32,)
    assert _shards(block["mlp"]["fc2"]["kernel"]) == (32, 8)


def test_gather_makes_whole_what_fsdp_splits():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for scan in (False, True):
        params = _state(mesh, scan_blocks=scan)["params"]
        with jax.set_mesh(mesh):
            whole = jax.jit(lambda params: sharding.gather(params, mesh))(params)
            assert _shards(whole["head"]["kernel"]) == (16, 5)
            assert _shards(whole["pos_embed"]) == (1, 5, 16)
            if not scan:
                assert _shards(whole["blocks"]["0"]["attn"]["qkv"]["kernel"]) == (16, 3, 1, 8)
                assert _shards(whole["blocks"]["0"]["mlp"]["fc2"]["kernel"]) == (32, 16)
                continue
            assert _shards(whole["blocks"]["stacked"]["attn"]["qkv"]["kernel"]) == (3, 8, 3, 1, 8)
            layer = jax.tree.map(lambda a: a[0], params["blocks"]["stacked"])
            layer = jax.jit(lambda layer: sharding.gather(layer, mesh, prefix="blocks.stacked"))(layer)
            assert _shards(layer["attn"]["qkv"]["kernel"]) == (16, 3, 1, 8)
            assert _shards(layer["mlp"]["fc1"]["kernel"]) == (16, 32)
            assert _shards(layer["norm1"]["scale"]) == (16,)


def test_constrain_tree_lays_out_as_stored():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = _state(mesh)["params"]
    with jax.set_mesh(mesh):
        whole = jax.tree.map(lambda a: np.asarray(a), params)
        again = jax.jit(lambda tree: sharding.constrain_tree(tree, mesh))(whole)
    assert jax.tree.map(_shards, again) == jax.tree.map(_shards, params)


def test_check_batch():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch(8, mesh, accumulate=2)
    with pytest.raises(InputError, match=r"data.batch_size=30 is not divisible by 8 \(mesh data=2 x fsdp=2 x accumula"):
        sharding.check_batch(30, mesh, accumulate=2)
    with pytest.raises(InputError, match=r"eval.batch_size=30 .* the nearest: 28 and 32$"):
        sharding.check_batch(30, mesh, what="eval.batch_size")
    with pytest.raises(InputError, match=r"the nearest: 4$"):
        sharding.check_batch(3, mesh)


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch = {"image": np.arange(32.0).reshape(8, 4), "label": np.arange(8)}
    placed = processes.to_global(batch, sharding.batch_sharding(mesh))
    assert _shards(placed["image"]) == (2, 4)
    np.testing.assert_array_equal(placed["label"], batch["label"])
    assert sharding.replicated(mesh).is_fully_replicated
