"""Every family over a mesh: values and gradients as on one device, and activations that stay where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import families
import golden
from collectives import PRIME, collectives
from vision_jax.functional import apply, split
from vision_jax.layers.conv import Conv
from vision_jax.mesh import BATCH, make_mesh, placing
from vision_jax.names import dotted
from vision_jax.parallel import sharding

pytestmark = pytest.mark.heavy


def gradient(static, shapes, mesh):
    """The jitted (params, other collections, images) -> (gradients, logits), in train mode, and the params' places."""
    places = sharding.shardings(shapes["params"], mesh)

    def loss(params, others, images):
        variables = {"params": sharding.gather(params, mesh), **others}
        with placing(lambda name, layer: sharding.gather(layer, mesh, prefix=name)):
            logits, _ = apply(static, variables, images, train=True, key=jax.random.key(0))
        logits = jnp.concatenate(logits, axis=1) if isinstance(logits, tuple) else logits  # two heads, one loss
        return (logits * golden.loss_weights(logits.shape)).sum(), logits

    return jax.jit(jax.grad(loss, has_aux=True), out_shardings=(places, None)), places


def run(key, mesh):
    """{name: gradient}, logits of eight images."""
    static, variables, size = families.build(key)
    run, places = gradient(static, variables, mesh)
    params = jax.device_put(variables.pop("params"), places)
    with jax.set_mesh(mesh):
        images = jax.device_put(golden.images(size, count=8), sharding.batch_sharding(mesh))
        grads, logits = run(params, variables, images)
    return {dotted(path): np.asarray(g) for path, g in jax.tree_util.tree_leaves_with_path(grads)}, np.asarray(logits)


def tiers(keys, default):
    """The keys, those beside the default ones in the second tier."""
    return [key if key in default else pytest.param(key, marks=pytest.mark.slow) for key in keys]


NEAR = (
    "vit, pooled by attention",
    "vit, wide",
    "vit, parallel",
    "sapiens2",
    "vit_relpos",
    "swin_v2_cr",
    "maxvit, parallel",
    "coatnet",
    "swin, scanned",
    "swin_v2",
    "pvt",
    "pvt_v2, linear",
    "resnet",
    "sknet",
    "res2net",
    "resnest",
    "resnet_v2",
    "regnet",
    "densenet",
    "convnextv2",
    "identityformer",
    "inception_next",
    "shvit",
    "efficientformer",
    "efficientformer_v2",
    "nextvit",
    "levit",
    "fastvit",
    "edgenext",
    "tiny_vit",
    "repvit",
    "mobilevit",
    "mobilevitv2",
    "coat",
    "cait",
    "xcit",
    "nest",
    "hiera",
    "focalnet",
    "pit",
    "visformer",
    "gmixer",
    "resmlp",
    "efficientnetv2",
    "mnasnet",
    "mobilenetv1",
    "mobilenetv2",
    "mobilenetv3",
    "mobilenetv4",
    "mobilenet_edgetpu",
    "mixnet",
    "tinynet",
    "fbnet",
    "fbnetv3",
    "lcnet",
    "vitamin",
    "lookupvit",
    "beit",
    "eva",
)


@pytest.mark.parametrize("key", tiers(families.FAMILIES, families.FAMILIES.keys() - set(NEAR)))
def test_sharded_equals_unsharded(key):
    expected, logits = run(key, make_mesh(data=1, devices=jax.devices()[:1]))
    got, sharded_logits = run(key, make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(sharded_logits, logits, rtol=0, atol=1e-5 * abs(logits).max())
    scale = np.sqrt(np.mean([np.mean(g**2) for g in expected.values()]))
    for name, value in got.items():  # what is 0 but for rounding has no relative error
        least = (1 if families.all_but_zero(name, got) else 0.1) * scale
        error = abs(value - expected[name]).max() / max(abs(expected[name]).max(), least)
        assert error < 1e-5, f"{name}: {error}"


def moved(key, **fields):
    """The collectives of a gradient over two shares of the parameters and four of the heads."""
    static, variables, size = families.build(key, **fields)
    assert all(n % PRIME for leaf in jax.tree.leaves(variables) for n in leaf.shape)
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    run, places = gradient(static, variables, mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    params = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes.pop("params"), places)
    images = jax.ShapeDtypeStruct((2 * PRIME, *size, 3), jnp.float32, sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return collectives(run.lower(params, shapes, images).compile().as_text())


@pytest.mark.parametrize("key", tiers(families.FAMILIES, ("vit", "swin", "maxvit", "pvt_v2", "cvt", "volo")))
def test_activations_are_summed_and_moved_in_no_other_way(key):
    """Heads and hidden features stay split from the first product of a branch to its last."""
    found = moved(key)
    gathered = [("all-gather", (shape,)) for shape in families.GATHERED.get(key, ())]
    others = [(c.kind, c.shapes) for c in found if c.moves_activations and c.kind != "all-reduce"]
    assert others == gathered
    assert any(c.kind == "all-gather" for c in found)  # the parameters, which are split over fsdp
    if key in families.ATTENTION:
        assert sum(c.moves_activations for c in found) >= 4  # a branch of attention, one of an MLP, both ways


THREE_HEADS = {"swin": dict(embed_dim=48, num_heads=(3,)), "pvt": dict(embed_dims=(48, 96), num_heads=(1, 3))}


@pytest.mark.parametrize(("key", "fields"), THREE_HEADS.items())
def test_heads_that_devices_cannot_share_are_whole_on_each(key, fields):
    assert not [c for c in moved(key, **fields) if c.moves_activations and c.kind != "all-reduce"]


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=2, tensor=2), dict(data=8)])
def test_gradient_of_a_grouped_convolution(groups, sizes):
    """The compiler's own partition multiplies it by the size of the tensor axis."""
    mesh, (static, variables) = make_mesh(**sizes), split(Conv(16, 16, 3, groups=groups))
    images = golden.images((6, 6), 16, 8)

    def loss(variables, x):
        return (apply(static, variables, x)[0] * jnp.sin(x)).sum()

    expected = jax.grad(loss)(variables, images)["params"]["kernel"]
    with jax.set_mesh(mesh):
        x = jax.device_put(images, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(BATCH)))
        got = jax.jit(jax.grad(loss))(variables, x)["params"]["kernel"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * abs(expected).max())
