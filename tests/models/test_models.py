"""What every registered model must do, and what ViT and ResNet do of their own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from vision_jax.errors import InputError
from vision_jax.functional import apply, jit, split
from vision_jax.models.base import patch_grid
from vision_jax.registry import create_model, list_models, model_info

# timm's counts, for models that it has under these names
PARAMS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def _shape(model, images, **options):
    static, variables = split(model)
    images = jax.ShapeDtypeStruct(images, jnp.float32)
    return jax.eval_shape(lambda variables, images: apply(static, variables, images, **options)[0], variables, images)


def _count(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.BatchStat))))


def test_every_model_has_its_count_told():
    assert {name: model_info(name).params for name in list_models() if name in PARAMS} == PARAMS


@pytest.mark.heavy
@pytest.mark.parametrize("name", list_models())
def test_every_variant(name):
    """Builds abstractly at its own size: count, and the pyramid in bfloat16."""
    info = model_info(name)
    scanned = {"scan_blocks": True} if hasattr(info.config, "scan_blocks") else {}  # one body a stage is traced
    model = create_model(name, abstract=True, dtype=jnp.bfloat16, **scanned)
    assert _count(model) == info.params
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}
    images = _images(info.config)
    maps = _shape(model, images, method="forward_features", pyramid=True)
    assert len(maps) == len(model.feature_info)
    for found, told in zip(maps, model.feature_info, strict=True):
        assert (found.shape[0], found.shape[3], found.dtype) == (1, told.channels, jnp.bfloat16)
        lost = name.startswith("pit_")  # its patches overlap, and nothing is padded
        for n, side in zip(found.shape[1:3], images[1:3], strict=True):  # strided convolutions round up, patches down
            assert n in (side // told.reduction - lost, -(-side // told.reduction))


# The smallest model of each class, with a classifier and without one
HEADS = {
    (info.model, info.config.num_classes > 0): name
    for info, name in sorted(((model_info(name), name) for name in list_models()), key=lambda pair: -pair[0].params)
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", HEADS.values())
def test_every_head(name):
    """Logits, or pooled features, in the dtype of the computation."""
    info = model_info(name)
    for dtype in (jnp.float32, jnp.bfloat16):
        model = create_model(name, abstract=True, dtype=dtype)
        logits = _shape(model, _images(info.config))
        neck = getattr(info.config, "neck_chans", None)
        width = info.config.num_classes or neck or model.feature_info[-1].channels
        assert (logits.shape, logits.dtype) == ((1, width), dtype)


def _images(config):
    return (1, *np.broadcast_to(config.img_size, 2).tolist(), config.in_chans)


@pytest.mark.parametrize(
    ("make", "channels", "reductions"), [(tiny.vit, (16,) * 3, (4,) * 3), (tiny.resnet, (64, 8, 16), (2, 4, 8))]
)
def test_feature_info(make, channels, reductions):
    info = make(abstract=True).feature_info
    assert tuple(m.channels for m in info) == channels
    assert tuple(m.reduction for m in info) == reductions


@pytest.mark.parametrize(("make", "size"), [(tiny.vit, 8), (tiny.resnet, 32)])
def test_out_indices(make, size):
    model, images = make(), tiny.normal(2, size, size, 3)
    predict = jit(model)
    maps = predict(images, method="forward_features", pyramid=True)
    last, first = predict(images, method="forward_features", pyramid=True, out_indices=(-1, 0))
    np.testing.assert_allclose(last, maps[-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first, maps[0], rtol=1e-5, atol=1e-5)
    assert len(predict(images, method="forward_features", pyramid=True, out_indices=(0,))) == 1
    for bad in (len(maps), -len(maps) - 1):
        with pytest.raises(InputError, match=f"{bad} is out of range, the model has {len(maps)} maps"):
            model.indices((0, bad))


@pytest.mark.parametrize(("make", "size"), [(tiny.vit, 8), (tiny.resnet, 32)])
def test_head_less_and_other_channels(make, size):
    model = make(abstract=True, num_classes=0, in_chans=1)
    assert _shape(model, (3, size, size, 1)).shape == (3, 16)
    assert "head" not in split(model)[1]["params"]
    assert "fc" not in split(model)[1]["params"]


@pytest.mark.parametrize(("make", "size"), [(tiny.vit, 8), (tiny.resnet, 32)])
def test_a_batch_of_one_and_of_many_agree(make, size):
    model, images = make(), tiny.normal(3, size, size, 3)
    predict = jit(model)
    np.testing.assert_allclose(predict(images[1:2]), predict(images)[1:2], rtol=1e-5, atol=1e-6)
    assert abs(predict(images)).max() > 1e-4


@pytest.mark.parametrize(("make", "size"), [(tiny.vit, 8), (tiny.resnet, 32)])
def test_bfloat16_is_near_float32(make, size):
    static, variables = split(make())
    half = split(make(abstract=True, dtype=jnp.bfloat16))[0]
    variables = jax.tree.map(lambda a: a + 0.1 * tiny.normal(*a.shape), variables)
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])
    images = tiny.normal(2, size, size, 3)
    full, low = (jax.jit(lambda v, x, s=s: apply(s, v, x)[0])(variables, images) for s in (static, half))
    assert low.dtype == jnp.bfloat16
    assert 0 < abs(low - full).max() < 0.05 * abs(full).max()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        for make, size in ((tiny.vit, 8), (tiny.resnet, 32)):
            static, variables = split(make(abstract=True, dtype=jnp.float64))
            variables = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), variables)
            images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float64)

            def call(variables, images, static=static):
                return apply(static, variables, images, train=True, key=jax.random.key(0))

            text = str(jax.make_jaxpr(call)(variables, images))
            out, state = jax.eval_shape(call, variables, images)
            assert {out.dtype, *(leaf.dtype for leaf in jax.tree.leaves(state))} == {np.dtype(np.float64)}
            assert "f32[" not in text


@pytest.mark.parametrize("make", [tiny.vit, tiny.resnet])
def test_images_of_the_wrong_shape(make):
    model = make(abstract=True)
    with pytest.raises(
        InputError, match=r"\(2, 3, 8, 8\) given; \[B, H, W, 3\] is wanted.*channels-first: images.tran"
    ):
        model(jnp.zeros((2, 3, 8, 8)))
    with pytest.raises(InputError, match=r"images of shape \(8, 8, 3\) given; \[B, H, W, 3\] is wanted\.$"):
        model(jnp.zeros((8, 8, 3)))
    with pytest.raises(InputError, match=r"images of shape \(2, 8, 8, 4\) given"):
        model(jnp.zeros((2, 8, 8, 4)))


# --- ViT


def test_vit_sizes():
    model = tiny.vit(abstract=True, img_size=(8, 16), patch_size=(4, 2))
    assert model.grid == (2, 8)
    assert model.pos_embed.shape == (1, 17, 16)
    assert _shape(model, (2, 8, 16, 3)).shape == (2, 5)
    assert _shape(model, (2, 8, 16, 3), method="forward_features").shape == (2, 17, 16)
    with pytest.raises(InputError, match=r"images give \(2, 4\) patches, .* for \(2, 8\): .*img_size=\(8, 8\)"):
        _shape(model, (2, 8, 8, 3))


def test_patch_grid():
    assert patch_grid((8, 12), (4, 2)) == (2, 6)
    assert patch_grid((9, 8), 4, drop_edge=True) == (2, 2)
    for size, patch, near in (((9, 8), 4, r"\(8, 8\)"), (9, 4, "8"), (9, (4, 3), r"\(8, 9\)"), (1, 4, "4")):
        with pytest.raises(InputError, match=f"is not a multiple of .*; the nearest is {near}$"):
            patch_grid(size, patch)


def test_vit_errors():
    for fields, message in (
        ({"img_size": 30}, r"img_size=30 is not a multiple of patch_size=4; the nearest is 32"),
        ({"img_size": (32, 1)}, r"img_size=\(32, 1\) is not a multiple of patch_size=4; the nearest is \(32, 4\)"),
        ({"num_heads": 3}, "embed_dim=16 must be a multiple of num_heads=3"),
        ({"act": "relu"}, "act='relu': one of 'gelu', 'gelu_tanh'"),
        ({"distilled": True, "reg_tokens": 1}, "distilled=True needs global_pool='token', reg_tokens=0"),
        ({"img_size": 3, "drop_edge": True}, r"img_size=3 is not a multiple of patch_size=4; the nearest is 4"),
        ({"global_pool": "max"}, "global_pool='max': one of 'token', 'avg'"),
        ({"class_token": False}, "global_pool='token' needs class_token=True; or use 'avg'"),
    ):
        with pytest.raises(InputError, match=message):
            tiny.vit(abstract=True, **fields)


def test_vit_options_are_seen():
    plain = tiny.by_name(split(tiny.vit(abstract=False))[1]["params"])

    def names(**fields):
        return set(tiny.by_name(split(tiny.vit(**fields))[1]["params"])) ^ set(plain)

    assert names(layer_scale_init=0.1) == {f"blocks.{i}.ls{n}.gamma" for i in range(3) for n in (1, 2)}
    assert names(qkv_bias=False) == {f"blocks.{i}.attn.qkv.bias" for i in range(3)}
    norms = {f"blocks.{i}.attn.{n}_norm.{leaf}" for i in range(3) for n in "qk" for leaf in ("scale", "bias")}
    assert names(qk_norm=True) == norms
    pooled = {"cls_token", "norm.scale", "norm.bias", "fc_norm.scale", "fc_norm.bias"}
    assert names(class_token=False, global_pool="avg") == pooled
    assert names(mlp_ratio=2.0) == set()
    assert tiny.vit(abstract=True, mlp_ratio=2.0).blocks is not None


@pytest.mark.parametrize(
    ("field", "masks"), [("drop_rate", 1), ("pos_drop_rate", 1), ("proj_drop_rate", 9), ("attn_drop_rate", 3)]
)
def test_vit_dropouts_draw_where_they_should(field, masks):
    static, variables = split(tiny.vit(abstract=True, **{field: 0.5}))

    def call(variables, images, key, train):
        return apply(static, variables, images, train=train, key=key)[0]

    images, key = jnp.zeros((2, 8, 8, 3)), jax.random.key(0)
    jaxpr = str(jax.make_jaxpr(call, static_argnums=3)(variables, images, key, True))
    assert jaxpr.count("name=_bernoulli") == masks
    assert "random" not in str(jax.make_jaxpr(call, static_argnums=3)(variables, images, key, False))


def _literal_vit(p, x, heads):
    """The forward pass from the paper (equations 1 to 4) in numpy: the last block's map, and the logits."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    erf = np.vectorize(math.erf)
    B, C = len(x), p["cls_token"].shape[-1]
    patches = x.reshape(B, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, 4, 48)
    x = patches @ p["patch_embed"]["proj"]["kernel"].reshape(48, C) + p["patch_embed"]["proj"]["bias"]
    x = np.concatenate([np.tile(p["cls_token"], (B, 1, 1)), x], 1) + p["pos_embed"]
    for i in range(3):
        b = p["blocks"][str(i)]
        qkv = np.einsum("bnc,cthd->tbhnd", norm(x, b["norm1"]), b["attn"]["qkv"]["kernel"])
        q, k, v = qkv + b["attn"]["qkv"]["bias"][:, None, :, None]
        y = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(C // heads)) @ v
        y = y.transpose(0, 2, 1, 3).reshape(B, 5, C)
        x = x + (y @ b["attn"]["proj"]["kernel"] + b["attn"]["proj"]["bias"]) * b["ls1"]["gamma"]
        y = norm(x, b["norm2"]) @ b["mlp"]["fc1"]["kernel"] + b["mlp"]["fc1"]["bias"]
        y = y * 0.5 * (1 + erf(y / math.sqrt(2)))
        x = x + (y @ b["mlp"]["fc2"]["kernel"] + b["mlp"]["fc2"]["bias"]) * b["ls2"]["gamma"]
    return x[:, 1:].reshape(B, 2, 2, C), norm(x, p["norm"])[:, 0] @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.heavy
@pytest.mark.parametrize("scan", [False, True])
def test_vit_is_the_papers(scan):
    with jax.enable_x64(True):
        model = tiny.refilled(tiny.vit(dtype=jnp.float64, layer_scale_init=1.0))
        x = tiny.normal(2, 8, 8, 3, dtype=np.float64)
        variables = split(model)[1]
        last, logits = _literal_vit(jax.tree.map(np.asarray, variables["params"]), np.asarray(x), heads=2)
        static, _ = split(tiny.vit(abstract=True, dtype=jnp.float64, layer_scale_init=1.0, scan_blocks=scan))
        if scan:
            blocks = [variables["params"]["blocks"][str(i)] for i in range(3)]
            variables["params"]["blocks"] = {"stacked": jax.tree.map(lambda *a: jnp.stack(a), *blocks)}
        got = jax.jit(lambda v, x: apply(static, v, x)[0])(variables, x)
        np.testing.assert_allclose(got, logits, rtol=1e-10, atol=1e-10)
        options = {"method": "forward_features", "pyramid": True, "out_indices": (-1,)}
        (got,) = jax.jit(lambda v, x: apply(static, v, x, **options)[0])(variables, x)
        np.testing.assert_allclose(got, last, rtol=1e-10, atol=1e-10)


# --- ResNet


def test_resnet_errors():
    with pytest.raises(InputError, match="block='wide': one of 'basic', 'bottleneck'"):
        tiny.resnet(abstract=True, block="wide")
    with pytest.raises(InputError, match=r"depths=\(1,\) and embed_dims=\(8, 16\) differ in length"):
        tiny.resnet(abstract=True, depths=(1,))


def test_resnet_starts_as_its_shortcuts():
    params = tiny.by_name(split(tiny.resnet(block="bottleneck"))[1]["params"])
    last = {name for name, value in params.items() if name.endswith(".scale") and (value == 0).all()}
    assert last == {f"stages.{i}.bn3.scale" for i in ("0.0", "1.0", "1.1")}
    params = tiny.by_name(split(tiny.resnet(zero_init_last=False))[1]["params"])
    assert all((value == 1).all() for name, value in params.items() if name.endswith(".scale"))


def test_resnet_strides_in_the_three_by_three():
    model = create_model("resnet50", abstract=True)
    first = getattr(model.stages[1], "0")
    assert [getattr(first, f"conv{i}").stride for i in (1, 2, 3)] == [(1, 1), (2, 2), (1, 1)]
    assert first.downsample[0].stride == (2, 2)
    assert getattr(model.stages[0], "0").downsample[0].stride == (1, 1)  # 64 to 256 channels
    assert not len(getattr(model.stages[0], "1").downsample)
    assert not len(getattr(create_model("resnet18", abstract=True).stages[0], "0").downsample)
    assert [b.rates for b in create_model("resnet18", abstract=True, drop_path_rate=0.7).stages] == [
        pytest.approx((0.2 * i, 0.2 * i + 0.1), abs=1e-12) for i in range(4)
    ]


@pytest.mark.heavy
def test_resnet_remat_changes_nothing():
    images, key, results = tiny.normal(4, 32, 32, 3), jax.random.key(0), []
    for remat in (None, "full"):
        static, variables = split(tiny.resnet(remat=remat, drop_path_rate=0.5, zero_init_last=False))

        def loss(params, stats, images, static=static):
            variables = {"params": params, "batch_stats": stats}
            out, state = apply(static, variables, images, train=True, key=key)
            return jnp.square(out).mean(), state

        grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
        results.append(grad(variables["params"], variables["batch_stats"], images))
    ((loss, state), grads), ((loss_remat, state_remat), grads_remat) = results
    np.testing.assert_allclose(loss_remat, loss, rtol=1e-6)
    tiny.assert_close(state_remat, state)
    tiny.assert_close(grads_remat, grads, rtol=1e-5)


def test_class_blocks_of_cait_are_not_dropped():
    """The schedule's golden sees rates, not how many blocks have one that is the same for all."""
    model = create_model("cait_xxs24_224", abstract=True, depth=3, drop_path_rate=0.2)
    assert (model.blocks.rates, model.class_blocks.rates) == ((0.2,) * 3, (0.0,) * 2)
