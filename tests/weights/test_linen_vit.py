"""The `.npz` ViTs in all the forms in which they are found."""

import ml_dtypes
import numpy as np
import pytest

import vision_jax as vj


def vit(**fields):
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 6, "depth": 2, "num_heads": 3, "num_classes": 5}
    return vj.create_model("vit_tiny_patch16_224", **{**small, **fields})


@pytest.fixture
def arrays():
    """A ViT as vision_transformer's AugReg release has it."""
    rng = np.random.default_rng(0)
    block = {
        "LayerNorm_0/scale": (6,), "LayerNorm_0/bias": (6,), "LayerNorm_2/scale": (6,), "LayerNorm_2/bias": (6,),
        **{f"MultiHeadDotProductAttention_1/{part}/kernel": (6, 3, 2) for part in ("query", "key", "value")},
        **{f"MultiHeadDotProductAttention_1/{part}/bias": (3, 2) for part in ("query", "key", "value")},
        "MultiHeadDotProductAttention_1/out/kernel": (3, 2, 6), "MultiHeadDotProductAttention_1/out/bias": (6,),
        "MlpBlock_3/Dense_0/kernel": (6, 24), "MlpBlock_3/Dense_0/bias": (24,),
        "MlpBlock_3/Dense_1/kernel": (24, 6), "MlpBlock_3/Dense_1/bias": (6,),
    }  # fmt: skip
    shapes = {
        "embedding/kernel": (4, 4, 3, 6), "embedding/bias": (6,), "cls": (1, 1, 6),
        "Transformer/posembed_input/pos_embedding": (1, 5, 6), "head/kernel": (6, 5), "head/bias": (5,),
        "Transformer/encoder_norm/scale": (6,), "Transformer/encoder_norm/bias": (6,),
        **{f"Transformer/encoderblock_{i}/{name}": shape for i in range(2) for name, shape in block.items()},
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def load(tmp_path, arrays):
    np.savez(tmp_path / "w.npz", **arrays)
    return vj.state_dict(vj.load_weights(vit(abstract=True), tmp_path / "w.npz"), "big_vision")


def assert_equal(given, wanted):
    assert given.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(given[name], wanted[name], err_msg=name)


def renamed(arrays, *pairs):
    out = {}
    for name, array in arrays.items():
        for old, new in pairs:
            name = name.replace(old, new)
        out[name] = array
    return out


def test_augreg(tmp_path, arrays):
    assert_equal(load(tmp_path, arrays), arrays)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_below_a_prefix(tmp_path, arrays, prefix):
    others = {"opt/state/step": np.int64(3), "step": np.int64(3)}
    assert_equal(load(tmp_path, {**{prefix + name: array for name, array in arrays.items()}, **others}), arrays)


NEW = (("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"), ("LayerNorm_2", "LayerNorm_1"),
       ("MlpBlock_3", "MlpBlock_0"), ("Transformer/posembed_input/pos_embedding", "pos_embedding"))  # fmt: skip


def test_big_vision(tmp_path, arrays):
    arrays["Transformer/posembed_input/pos_embedding"][:, 0] = 0
    given = renamed(arrays, *NEW)
    given["pos_embedding"] = given["pos_embedding"][:, 1:]
    assert_equal(load(tmp_path, given), arrays)


def test_stacked_blocks(tmp_path, arrays):
    first = "Transformer/encoderblock_0/"
    given = {name: array for name, array in arrays.items() if "encoderblock" not in name}
    for name in arrays:
        if name.startswith(first):
            blocks = [arrays[name], arrays[name.replace("block_0", "block_1")]]
            given[name.replace("encoderblock_0", "encoderblock")] = np.stack(blocks)
    assert_equal(load(tmp_path, renamed(given, *NEW)), arrays)


def test_bfloat16_saved_as_raw_bytes(tmp_path, arrays):
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    given = {name: array.view("V2") for name, array in rounded.items()}
    assert_equal(load(tmp_path, given), {name: array.astype(np.float32) for name, array in rounded.items()})


def test_missing_positions_are_reported(tmp_path, arrays):
    del arrays["Transformer/posembed_input/pos_embedding"]
    with pytest.raises(vj.InputError, match=r"missing Transformer/posembed_input/pos_embedding \(1, 5, 6\)"):
        load(tmp_path, arrays)
