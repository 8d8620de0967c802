import pickle

import numpy as np
import pytest

from vision_jax.data.ops import parse_op, split_ops
from vision_jax.errors import InputError


def test_ops_are_split_and_run_in_order():
    host, device = split_ops(["resize((4, 6))", "pad(1)", "center_crop(4)", "normalize(mean=(0.5,), std=(0.5,))"])
    example = {"image": np.full((8, 8, 1), 255, np.uint8), "label": 3}
    out = host(example, np.random.default_rng(0))
    assert out["image"].shape == (4, 4, 1)
    assert out["image"].dtype == np.uint8
    assert out["label"] == 3
    batch = device(None, {"image": out["image"][None], "label": np.array([3])})
    assert float(batch["image"].max()) == 1.0
    assert pickle.loads(pickle.dumps(host)) == host


def test_literal_arguments_reach_the_op():
    name, op = parse_op(" random_resized_crop(224, scale=(0.2, 1.0), interpolation='bilinear') ")
    assert (name, op.size, op.scale, op.interpolation) == ("random_resized_crop", 224, (0.2, 1.0), "bilinear")


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ("decode", "tuple of strings"),
        (["decod"], "did you mean 'decode'"),
        (["resize(siz=3)"], "did you mean 'size'"),
        (["resize()"], "missing"),
        (["resize()"], "resize(size, interpolation='bicubic')"),
        (["flip(0.5, 1)"], "positional"),
        (["resize(256"], "not a call"),
        (["resize.fast(3)"], "not a name or a call"),
        (["resize(open('x'))"], "literals"),
        (["resize(*[3])"], "literals"),
        (["resize('big')"], "positive integer"),
        (["resize(3, interpolation='bicubik')"], "did you mean 'bicubic'"),
        (["flip(1.5)"], "[0, 1]: given 1.5"),
        (["flip('often')"], "given 'often'"),
        (["random_resized_crop(8, scale=(0, 1))"], "0 < low"),
        (["rand_augment(magnitude=11)"], "[0, 10]"),
        (["rand_augment(magnitude=16, max_magnitude=15)"], "[0, 15]"),
        (["decode(channels=4)"], "1 or 3"),
        (["flip", "decode"], "first op"),
        (["normalize", "flip"], "cannot follow"),
        (["random_erasing"], '"normalize" before'),
        (["mix(mixup=0.8)", "normalize"], '"normalize" before'),
        (["normalize", "mix"], "both are 0"),
        (["normalize(std=(0,))"], "above zero"),
        (["normalize(mean=0.5)"], "tuple of numbers"),
        (["pad(2, mode='mirror')"], "unknown padding mode"),
    ],
)
def test_wrong_ops_are_named(ops, said):
    with pytest.raises(InputError) as caught:
        split_ops(ops)
    assert said in str(caught.value)


def test_encoded_images_need_decode():
    host, _ = split_ops(["flip"])
    with pytest.raises(InputError, match="start with"):
        host({"image": b"...", "label": 0}, np.random.default_rng(0))


def test_random_device_op_needs_a_key():
    _, device = split_ops(["normalize", "random_erasing"])
    with pytest.raises(InputError, match="needs a key"):
        device(None, {"image": np.zeros((1, 4, 4, 3), np.uint8), "label": np.zeros(1, np.int32)})
