"""Weights and values against timm and transformers, live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import vision_jax as vj
from vision_jax.layers.resample import resample_positions

pytestmark = pytest.mark.parity

CASES = {
    "vit": ("vit_tiny_patch16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 3, "num_classes": 7}),
    "vit_avg": ("vit_small_patch16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2, "class_token": False,
                                              "global_pool": "avg", "qkv_bias": False, "qk_norm": True}),
    "vit_avg_of_patches": ("vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 1, "global_pool": "avg"}),
    "resnet18": ("resnet18", 64, {"num_classes": 7}),
    "resnet50": ("resnet50", 64, {}),
}  # fmt: skip


def randomise(torch, model, seed=0):
    """Fills a torch module so that every leaf shows in the output, and sets it to evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for name, leaf in model.state_dict().items():
        if not leaf.is_floating_point():
            continue
        if leaf.ndim > 1 and name.endswith("weight"):
            leaf.normal_(0, (leaf[0].numel()) ** -0.5, generator=generator)
        elif name.endswith(("weight", "running_var", "gamma")):
            leaf.uniform_(0.5, 1.5, generator=generator)
        else:
            leaf.normal_(0, 0.1 if name.endswith(("bias", "mean")) else 1, generator=generator)
    return model.eval()


def load_file(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(params=CASES)
def pair(request, reference):
    """(timm's model, a maker of ours, image size)."""
    name, size, fields = CASES[request.param]
    timm, torch = reference("timm"), reference("torch")
    return randomise(torch, timm.create_model(name, **fields)), lambda **kw: vj.create_model(name, **fields, **kw), size


def test_round_trip_through_timm(pair, reference, tmp_path):
    theirs, make, _ = pair
    torch = reference("torch")
    vj.save_weights(vj.load_weights(make(abstract=True), theirs.state_dict()), tmp_path / "w.safetensors")
    given = load_file(tmp_path / "w.safetensors")
    for name, leaf in theirs.state_dict().items():
        assert torch.equal(given[name], leaf), name
    theirs.load_state_dict(given, strict=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
def test_outputs_equal_timm(pair, reference, dtype, tolerance):
    theirs, make, size = pair
    torch = reference("torch")
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(dtype)
    with torch.no_grad():
        wanted = theirs.to(getattr(torch, dtype))(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    theirs.float()
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2 * wanted.std()  # it sees the images
    with jax.enable_x64(dtype == "float64"):
        static, variables = vj.split(vj.load_weights(make(abstract=True, dtype=jnp.dtype(dtype)), theirs.state_dict()))
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        given = np.asarray(jax.jit(vj.apply, static_argnums=0)(static, variables, images)[0])
    assert given.dtype == wanted.dtype
    rms = np.sqrt(np.square(wanted).mean())
    assert np.abs(given - wanted).max() <= tolerance * rms


@pytest.mark.parametrize(("side", "grid", "prefix"), [(4, (7, 7), 1), (7, (4, 4), 1), (5, (3, 8), 2), (6, (12, 5), 0)])
def test_positions_equal_timm(reference, side, grid, prefix):
    torch = reference("torch")
    resample = reference("timm.layers").resample_abs_pos_embed
    table = np.random.default_rng(0).normal(size=(1, prefix + side * side, 5)).astype(np.float32)
    wanted = resample(torch.from_numpy(table), list(grid), num_prefix_tokens=prefix).numpy()
    np.testing.assert_allclose(resample_positions(table, grid, prefix), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 40), (16, 16)])
def test_another_resolution_equals_timm(reference, size):
    timm, torch = reference("timm"), reference("torch")
    filter_state_dict = reference("timm.models.vision_transformer").checkpoint_filter_fn
    name, _, fields = CASES["vit"]
    weights = randomise(torch, timm.create_model(name, **fields)).state_dict()
    theirs = timm.create_model(name, **{**fields, "img_size": size}).eval()
    theirs.load_state_dict(filter_state_dict(dict(weights), theirs, interpolation="bicubic", antialias=True))
    ours = vj.load_weights(vj.create_model(name, abstract=True, **{**fields, "img_size": size}), weights)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=1e-4)


def huggingface(reference):
    transformers, torch = reference("transformers"), reference("torch")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        num_labels=7, layer_norm_eps=1e-6,
    )  # fmt: skip
    return randomise(torch, transformers.ViTForImageClassification(config))


HF = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7, "abstract": True}


def test_transformers_files_and_modules(reference, tmp_path):
    torch, theirs = reference("torch"), huggingface(reference)
    theirs.save_pretrained(tmp_path)
    ours = vj.load_weights(vj.create_model("vit_tiny_patch16_224", **HF), tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()
    np.testing.assert_allclose(vj.jit(ours)(images), wanted, rtol=0, atol=1e-5)

    vj.save_weights(ours, tmp_path / "model.safetensors", names="hf")
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, leaf in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], leaf), name

    vj.save_weights(ours, tmp_path / "modules.safetensors", names="hf_modules")
    theirs.load_state_dict(load_file(tmp_path / "modules.safetensors"), strict=True)
    vj.load_weights(vj.create_model("vit_tiny_patch16_224", **HF), theirs.state_dict())


def test_big_vision_file_equals_timm(reference, tmp_path):
    """timm reads the `.npz` that we write, and ends up with our weights."""
    timm, torch = reference("timm"), reference("torch")
    name, _, fields = CASES["vit"]
    source, target = (timm.create_model(name, **fields) for _ in range(2))
    ours = vj.load_weights(vj.create_model(name, abstract=True, **fields), randomise(torch, source).state_dict())
    vj.save_weights(ours, tmp_path / "w.npz", names="big_vision")
    target.load_pretrained(str(tmp_path / "w.npz"))
    for leaf, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[leaf], value), leaf
