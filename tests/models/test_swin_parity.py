"""Swin and Swin V2 against timm and transformers, live."""

import importlib

import numpy as np
import pytest

import vision_jax as vj

pytestmark = pytest.mark.parity

V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
SMALL = dict(img_size=64, embed_dim=24, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=4, num_classes=7)


def randomise(torch, model):
    """Fills a torch module so that every leaf shows in the output, and sets it to evaluation."""
    generator = torch.Generator().manual_seed(0)
    for name, leaf in model.state_dict().items():
        if leaf.ndim > 1 and name.endswith("weight"):
            leaf.normal_(0, leaf[0].numel() ** -0.5, generator=generator)
        elif name.endswith("weight"):
            leaf.uniform_(0.5, 1.5, generator=generator)
        elif leaf.is_floating_point():
            leaf.normal_(0, 0.1 if name.endswith("bias") else 1, generator=generator)
    return model.eval()


def outputs(torch, model, images):
    with torch.no_grad():
        out = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    return getattr(out, "logits", out).numpy()


def random_images(*size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (V1, dict(window_size=6, img_size=96)),
        (V1, dict(window_size=3, img_size=48)),
        (V1, dict(img_size=(32, 96))),  # the last stage's window shrinks to 2 x 4
        (V1, dict(window_size=(5, 7), img_size=(80, 112))),
        (V2, dict(window_size=6, img_size=96, pretrained_window_sizes=(4, 4, 4))),
        ("swinv2_cr_tiny_ns_224", dict(img_size=(64, 96), window_size=None)),  # windows of an eighth of the first map
    ],
)
def test_another_resolution_equals_timm(reference, name, change):
    timm, torch = reference("timm"), reference("torch")
    source = randomise(torch, timm.create_model(name, **SMALL)).state_dict()
    theirs = timm.create_model(name, **{**SMALL, **change}).eval()
    convert = importlib.import_module(type(theirs).__module__).checkpoint_filter_fn
    theirs.load_state_dict(convert(dict(source), theirs), strict=True)
    ours = vj.load_weights(vj.create_model(name, abstract=True, **{**SMALL, **change}), source)
    images = random_images(*theirs.patch_embed.img_size)
    np.testing.assert_allclose(vj.jit(ours)(images), outputs(torch, theirs, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [V1, V2])
def test_the_authors_files(reference, name):
    """timm reads what we write under the authors' names, and we read it with the buffers that their files hold."""
    timm, torch = reference("timm"), reference("torch")
    theirs = randomise(torch, timm.create_model(name, **SMALL))
    ours = vj.load_weights(vj.create_model(name, abstract=True, **SMALL), theirs.state_dict())
    official = vj.state_dict(ours, "official")
    convert = importlib.import_module(type(theirs).__module__).checkpoint_filter_fn
    read = convert({leaf: torch.from_numpy(value) for leaf, value in official.items()}, theirs)
    assert read.keys() == theirs.state_dict().keys()
    assert all(torch.equal(read[leaf], value) for leaf, value in theirs.state_dict().items())
    buffers = ("attn.relative_position_index", "attn.relative_coords_table" if name == V2 else "attn_mask", "attn_mask")
    official |= {f"layers.0.blocks.1.{buffer}": np.zeros((2, 2), np.int64) for buffer in buffers}
    again = vj.load_weights(vj.create_model(name, abstract=True, **SMALL), official)
    assert all(np.array_equal(a, b) for a, b in zip(*(vj.state_dict(m).values() for m in (ours, again)), strict=True))


@pytest.mark.parametrize(("name", "kind"), [(V1, "Swin"), (V2, "Swinv2")])
def test_transformers_files(reference, name, kind, tmp_path):
    transformers, torch = reference("transformers"), reference("torch")
    config = getattr(transformers, f"{kind}Config")(
        image_size=64, embed_dim=24, depths=[2, 2, 1], num_heads=[1, 2, 4], window_size=4, num_labels=7
    )
    theirs = randomise(torch, getattr(transformers, f"{kind}ForImageClassification")(config))
    theirs.save_pretrained(tmp_path)
    ours = vj.load_weights(vj.create_model(name, abstract=True, **SMALL), tmp_path)
    images = random_images(64, 64)
    np.testing.assert_allclose(vj.jit(ours)(images), outputs(torch, theirs, images), rtol=0, atol=1e-4)
    vj.save_weights(ours, tmp_path / "model.safetensors", names="hf")
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(again.state_dict()[leaf], value) for leaf, value in theirs.state_dict().items())
