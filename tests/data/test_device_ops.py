import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.data.device_ops import Mix, Normalize, RandomErasing, cutmix_box, inside, partners
from vision_jax.data.ops import DeviceOps
from vision_jax.errors import InputError
from vision_jax.mesh import make_mesh
from vision_jax.parallel.sharding import batch_sharding


def batch_of(B=8, H=12, W=16, C=3):
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (B, H, W, C), np.uint8), "label": np.arange(B, dtype=np.int32)}


def test_normalize_equals_numpy():
    batch = batch_of()
    out = jax.jit(Normalize())(None, batch)["image"]
    expected = (batch["image"] / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=2e-6)
    out = Normalize((0.5,), (0.25,))(None, batch_of(C=1))["image"]
    np.testing.assert_allclose(out, (batch_of(C=1)["image"] / 255.0 - 0.5) / 0.25, atol=1e-6)


def test_normalize_refuses():
    with pytest.raises(InputError, match="3 values for images of 1 channels"):
        Normalize()(None, batch_of(C=1))
    with pytest.raises(InputError, match="uint8"):
        Normalize()(None, Normalize()(None, batch_of()))


def test_inside_equals_loops():
    masks = np.asarray(
        inside((jnp.array([1, 0]), jnp.array([2, 0]), jnp.array([3, 0]), jnp.array([1, 5])), (2, 6, 7, 3))
    )
    expected = np.zeros((2, 6, 7), bool)
    expected[0, 1:4, 2:3] = True
    assert np.array_equal(masks, expected)


def test_random_erasing_boxes_equal_numpy():
    op, shape, key = RandomErasing(), (64, 32, 48, 3), jax.random.key(1)
    top, left, height, width = map(np.asarray, jax.jit(op.boxes, static_argnums=1)(key, shape))
    area_key, aspect_key, *_ = jax.random.split(key, 4)
    area = 32 * 48 * np.asarray(jax.random.uniform(area_key, (64, 10), minval=0.02, maxval=1 / 3))
    log = np.log(0.3)
    aspect = np.exp(np.asarray(jax.random.uniform(aspect_key, (64, 10), minval=log, maxval=-log)))
    for b in range(64):
        for a, r in zip(area[b], aspect[b], strict=True):
            h, w = round(np.sqrt(a * r)), round(np.sqrt(a / r))
            if h < 32 and w < 48:
                break
        assert (height[b], width[b]) == (h, w)
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 32
    assert (left + width).max() == 48


def test_random_erasing_takes_a_whole_number():
    image = jnp.ones((2, 8, 8, 3))
    for prob, changed in ((0, False), (1, True)):
        out = RandomErasing(prob=prob)(jax.random.key(0), {"image": image})["image"]
        assert (out != image).any() == changed


def test_random_erasing_fills_its_box_with_unit_noise():
    batch = {"image": jnp.full((400, 32, 32, 3), 7.0), "label": jnp.zeros(400, jnp.int32)}
    out = np.asarray(jax.jit(RandomErasing(0.25))(jax.random.key(0), batch)["image"])
    changed = (out != 7).all(-1)
    assert np.array_equal(changed, (out != 7).any(-1))
    assert 70 < changed.any((1, 2)).sum() < 130
    for mask in changed[changed.any((1, 2))]:
        rows, columns = mask.any(1), mask.any(0)
        assert np.array_equal(mask, rows[:, None] & columns[None, :])
        assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
    noise = out[out != 7]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def draws(op, batch, count):
    """The op's results for keys 0, 1, ... as NumPy arrays."""
    op = jax.jit(op)
    return [jax.tree.map(np.asarray, op(jax.random.key(seed), batch)) for seed in range(count)]


def test_mixup_equals_numpy():
    batch = Normalize()(None, batch_of())
    x, lams = np.asarray(batch["image"]), []
    for out in draws(Mix(mixup=0.8), batch, 20):
        (lam,) = set(out["mix_weight"].tolist())
        assert out["mix_weight"].dtype == np.float32
        assert out["mix_weight"].shape == (8,)
        np.testing.assert_allclose(out["image"], lam * x + (1 - lam) * x[::-1], atol=1e-5)
        assert np.array_equal(out["label_mixed"], np.arange(8)[::-1])
        assert np.array_equal(out["label"], np.arange(8))
        lams.append(lam)
    assert 0 < min(lams) < 0.3
    assert 0.7 < max(lams) < 1


def test_partners_stay_on_their_device():
    x = np.arange(32)
    expected = [*range(8, 16), *range(8), *range(24, 32), *range(16, 24)]
    assert np.array_equal(partners(x), expected)
    assert np.array_equal(partners(partners(x)), x)
    assert np.array_equal(partners(x[:24]), x[:24][::-1])
    mesh = make_mesh(fsdp=2, data=1, devices=jax.devices()[:2])
    batch = {"image": jnp.zeros((32, 4, 4, 3)), "label": jnp.zeros(32, jnp.int32)}
    batch = jax.device_put(batch, batch_sharding(mesh))
    text = jax.jit(Mix(mixup=0.8)).lower(jax.random.key(0), batch).compile().as_text()
    assert not re.findall(r"collective-permute|all-gather|all-to-all|all-reduce", text)


def test_cutmix_equals_numpy():
    batch = Normalize()(None, batch_of(H=16, W=20))
    x = np.asarray(batch["image"])
    for seed, out in enumerate(draws(Mix(cutmix=1.0), batch, 20)):
        _, _, _, cutmix_key, box_key = jax.random.split(jax.random.key(seed), 5)
        lam = float(jax.random.beta(cutmix_key, 1.0, 1.0))
        row_key, column_key = jax.random.split(box_key)
        cy, cx = int(jax.random.randint(row_key, (), 0, 16)), int(jax.random.randint(column_key, (), 0, 20))
        h, w = int(16 * np.sqrt(1 - lam)), int(20 * np.sqrt(1 - lam))
        y0, y1, x0, x1 = max(cy - h // 2, 0), min(cy + h // 2, 16), max(cx - w // 2, 0), min(cx + w // 2, 20)
        expected = x.copy()
        expected[:, y0:y1, x0:x1] = x[::-1, y0:y1, x0:x1]
        assert np.array_equal(out["image"], expected)
        np.testing.assert_allclose(out["mix_weight"], 1 - (y1 - y0) * (x1 - x0) / 320, atol=1e-6)


def test_mix_switches_and_skips():
    batch = Normalize()(None, batch_of())
    x = np.asarray(batch["image"])
    kinds = {"same": 0, "cutmix": 0, "mixup": 0}
    for out in draws(Mix(mixup=1.0, cutmix=1.0, switch_prob=0.5, prob=0.8), batch, 100):
        if (out["mix_weight"] == 1).all() and np.array_equal(out["image"], x):
            kinds["same"] += 1
        else:
            kinds["cutmix" if np.isin(out["image"], x).all() else "mixup"] += 1
    assert 10 < kinds["same"] < 35
    assert kinds["cutmix"] > 25
    assert kinds["mixup"] > 25


def test_cutmix_box_may_be_empty_but_never_leaves_the_image():
    for lam in (0.0, 1.0):
        for seed in range(10):
            top, left, height, width = map(int, cutmix_box(jax.random.key(seed), lam, (1, 9, 11, 3)))
            assert 0 <= top <= top + height <= 9
            assert 0 <= left <= left + width <= 11
            assert (height * width == 0) == (lam == 1.0)


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from vision_jax.data.ops import split_ops
_, ops = split_ops(("normalize", "random_erasing(0.5)", "mix(mixup=0.8, cutmix=1.0)"))
rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (16, 8, 8, 3), np.uint8), "label": np.arange(16, dtype=np.int32)}
rows = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
for seed in range(3):
    one = jax.jit(ops)(jax.random.key(seed), batch)
    eight = jax.jit(ops, out_shardings=rows)(jax.random.key(seed), jax.device_put(batch, rows))
    assert len(eight["image"].sharding.device_set) == 8
    for name in one:
        np.testing.assert_allclose(np.asarray(eight[name]), np.asarray(one[name]), atol=1e-6, err_msg=name)
"""


def test_sharded_over_eight_devices_equals_one():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    subprocess.run([sys.executable, "-c", SHARDED], check=True, env=environment)


def test_each_op_has_its_own_key():
    keys = []

    class Spy:
        random = True

        def __call__(self, key, batch):
            keys.append(jax.random.key_data(key).tolist())
            return batch

    DeviceOps((Spy(), Spy()))(jax.random.key(0), {})
    assert keys[0] != keys[1]
