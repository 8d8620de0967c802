"""The train step over simulated devices: the same losses as on one, and no array gathered that need not be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import tiny
from vision_jax.errors import InputError
from vision_jax.functional import init, split
from vision_jax.mesh import make_mesh
from vision_jax.parallel import sharding
from vision_jax.parallel.processes import to_global
from vision_jax.tasks.classification import Classification
from vision_jax.train import step

B, STEPS = 16, 20
RATES = {"drop_path_rate": 0.2, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
MODELS = {
    "vit": lambda **fields: tiny.vit(abstract=True, depth=2, **RATES, **fields),
    "scanned vit": lambda **fields: tiny.vit(abstract=True, depth=2, scan_blocks=True, **RATES, **fields),
    "resnet": lambda **fields: tiny.resnet(abstract=True, drop_path_rate=0.2, zero_init_last=False, **fields),
}
SIZES = {"vit": 8, "scanned vit": 8, "resnet": 32}


def _compiled(name, mesh, options=(), **fields):
    """The jitted step as training runs it, and the shapes of its state with their shardings."""
    static, _ = split(MODELS[name](**fields))
    optimizer = optax.adamw(1e-3)
    task = Classification(tuple("abcde"), label_smoothing=0.1)
    fn = step.make_train_step(
        static, task, optimizer, lambda key, batch: batch, mesh, sharding.RULES, seed=0, accumulate=2, ema_decay=0.99,
        **dict(options),
    )  # fmt: skip

    def draw(key):
        return step.initial_state(init(static, key), optimizer, average=True)

    shapes = jax.eval_shape(draw, jax.random.key(0))
    places = sharding.shardings(shapes, mesh)
    return jax.jit(fn, donate_argnums=0, out_shardings=(places, None)), draw, shapes, places


def _train(name, mesh, **options):
    run, draw, _, places = _compiled(name, mesh, options)
    losses = []
    with jax.set_mesh(mesh):
        state = jax.jit(draw, out_shardings=places)(jax.random.key(0))
        for i in range(STEPS):
            images = np.asarray(tiny.normal(B, SIZES[name], SIZES[name], 3, seed=i))
            batch = {"image": images, "label": (np.arange(B) + i) % 5}
            state, metrics = run(state, to_global(batch, sharding.batch_sharding(mesh)), {})
            losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda a: a.sharding, state) == places
    return np.array(losses), jax.tree.map(np.asarray, step.evaluated(state))


@functools.cache
def _on_one_device(name):
    return _train(name, make_mesh(data=1, devices=jax.devices()[:1]))


SPLIT = '[{"data", "fsdp"}, {"tensor"}, {}]'  # of tokens, in a lowered program
TOKENS = {"shard_tokens": True}  # seventeen, which four devices do not divide


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("vit", {"data": 2, "fsdp": 4}, {}),
        ("vit", {"data": 2, "fsdp": 2, "tensor": 2}, {}),
        ("vit", {"data": 1, "fsdp": 2, "tensor": 4}, TOKENS),
        ("resnet", {"data": 2, "fsdp": 4}, {}),
        ("resnet", {"data": 2, "fsdp": 2, "tensor": 2}, {}),
    ],
)
def test_twenty_steps_on_eight_devices(name, sizes, options):
    expected, average = _on_one_device(name)
    losses, on_mesh = _train(name, make_mesh(**sizes), **options)
    assert abs(np.diff(expected)).min() > 1e-4  # something is learnt, and every step is another
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    for leaf, value in tiny.by_name(on_mesh).items():
        np.testing.assert_allclose(value, tiny.by_name(average)[leaf], rtol=0, atol=1e-4, err_msg=leaf)


def test_tokens_are_split_between_layers():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    images = {"image": jax.ShapeDtypeStruct((B, 8, 8, 3), jnp.float32), "label": jax.ShapeDtypeStruct((B,), jnp.int32)}
    run, _, shapes, _ = _compiled("vit", mesh, TOKENS)
    with jax.set_mesh(mesh):
        text = run.lower(shapes, images, {}).as_text()
        assert text.count(SPLIT) >= 4  # after each of two layers of two blocks
        plain = _compiled("vit", mesh)[0].lower(shapes, images, {}).as_text()
        assert plain.count(SPLIT) == 0
        run, _, shapes, _ = _compiled("resnet", mesh, TOKENS)
        images["image"] = jax.ShapeDtypeStruct((B, 32, 32, 3), jnp.float32)
        with pytest.raises(InputError, match="shard_tokens=True: ResNet has no blocks of tokens"):
            run.lower(shapes, images, {})


@pytest.fixture
def rematerialisations(capfd):
    """Compiles what is lowered, anew, and counts what the partitioner says of arrays that it must gather whole."""

    def count(lowered):
        capfd.readouterr()
        lowered.compile()
        return capfd.readouterr().err.count("Involuntary full rematerialization")

    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache says nothing
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    yield count
    jax.config.update("jax_enable_compilation_cache", enabled)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


@pytest.mark.heavy
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 2, "tensor": 4}])
def test_nothing_is_gathered_involuntarily(rematerialisations, name, sizes):
    mesh = make_mesh(**sizes)
    options = {} if name == "resnet" or mesh.shape["tensor"] == 1 else TOKENS
    run, _, shapes, places = _compiled(name, mesh, options, **({} if name == "resnet" else {"num_heads": 4}))
    state = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    rows = sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((B, SIZES[name], SIZES[name], 3), jnp.float32, sharding=rows)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((B,), jnp.int32, sharding=rows)}
    with jax.set_mesh(mesh):
        assert rematerialisations(run.lower(state, batch, {})) == 0


@pytest.mark.heavy
def test_a_rematerialisation_is_seen(rematerialisations):
    mesh = make_mesh(data=2, fsdp=4)

    def reshard(x):
        x = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, P("fsdp")))
        return jax.lax.with_sharding_constraint(jnp.cos(x), NamedSharding(mesh, P(None, "data")))

    x = jax.ShapeDtypeStruct((16, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    assert rematerialisations(jax.jit(reshard).lower(x)) == 1
