import jax
import numpy as np
import pytest

from vision_jax.errors import InputError
from vision_jax.train.ema import ema_update
from vision_jax.train.schedules import SCHEDULES, duration, make_schedule


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (500, 500),
        (np.int64(7), 7),
        ("500", 500),
        ("500 steps", 500),
        ("1 step", 1),
        ("5 epochs", 5 * 1000 // 64),
        ("0.5epochs", 8),  # 7.8: the nearest
        ("1e6 examples", 15625),
        ("29%", 58),
        (0, 0),
    ],
)
def test_duration(value, steps):
    got = duration(value, batch_size=64, num_examples=1000, total_steps=200)
    assert got == steps
    assert type(got) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5 epoks", "'epochs'"),
        ("5 sreps", "'steps'"),
        ("five epochs", "warmup='five epochs'"),
        ("1e400 steps", "infinite"),
        (-1, "negative"),
        (0.5, "an int is steps"),
        (True, "an int is steps"),
        (None, "an int is steps"),
        ("2 epochs", "examples an epoch"),
        ("10%", "length of the run"),
    ],
)
def test_duration_says_what_is_wrong(value, message):
    with pytest.raises(InputError, match=message):
        duration(value, batch_size=64, num_examples=None)


def _expected(name, step, base, total, warmup, cooldown, end, timescale):
    def decay(step):
        t, T = step - warmup, total - warmup
        if name == "cosine":
            return end + (base - end) * 0.5 * (1 + np.cos(np.pi * t / T))
        if name == "linear":
            return base + (end - base) * t / T
        return base / np.sqrt(1 + t / timescale) if name == "rsqrt" else base

    if step < warmup:
        return base * step / warmup
    start = total - cooldown
    return decay(step) if step < start or not cooldown else decay(start) * (total - step) / cooldown


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0), (10, 0), (0, 20), (10, 20), (60, 40)])
def test_schedule_is_its_formula(name, warmup, cooldown):
    end = 1e-5 if name in ("cosine", "linear") else 0.0
    schedule = jax.jit(make_schedule(name, 1e-3, 100, warmup=warmup, cooldown=cooldown, end=end, timescale=30))
    got = np.array([schedule(step) for step in range(101)])
    expected = [_expected(name, step, 1e-3, 100, warmup, cooldown, end, 30) for step in range(101)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_exact_at_its_boundaries(name):
    base = np.float32(3e-4)
    schedule = make_schedule(name, 3e-4, 100, warmup=10, cooldown=20)
    assert schedule(0) == 0
    assert np.float32(schedule(10)) == base
    assert schedule(100) == 0
    assert schedule(101) == 0
    if name in ("cosine", "linear"):
        ends = make_schedule(name, 3e-4, 100, warmup=10, end=1e-6)
        assert np.float32(ends(100)) == np.float32(1e-6)
        assert np.float32(ends(1000)) == np.float32(1e-6)


def test_schedule_of_warmup_alone():
    schedule = make_schedule("cosine", 1.0, 10, warmup=10)
    assert [float(schedule(step)) for step in (0, 5, 10)] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "'cosine'"),
        ("cosine", {"warmup": 60, "cooldown": 50}, "warmup=60 and cooldown=50.*total_steps=100"),
        ("cosine", {"warmup": -1}, "warmup=-1"),
        ("rsqrt", {"end": 1e-5}, "no end"),
        ("rsqrt", {"timescale": 0}, "timescale=0"),
    ],
)
def test_schedule_says_what_is_wrong(name, options, message):
    with pytest.raises(InputError, match=message):
        make_schedule(name, 1e-3, 100, **options)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_its_formula(warmup):
    rng = np.random.default_rng(0)
    ema = expected = rng.standard_normal(5).astype(np.float32)
    tree = {"w": jax.numpy.asarray(ema)}
    update = jax.jit(ema_update, static_argnums=(3, 4))
    expected = expected.astype(np.float64)
    for step in range(100):
        param = rng.standard_normal(5).astype(np.float32)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * param
        tree = update(tree, {"w": jax.numpy.asarray(param)}, step, 0.9, warmup)
    assert tree["w"].dtype == np.float32
    np.testing.assert_allclose(tree["w"], expected, rtol=1e-5, atol=1e-6)


def test_ema_keeps_its_digits_at_a_high_decay():
    zero, one = {"w": jax.numpy.zeros(())}, {"w": jax.numpy.ones(())}
    for warmup in (False, True):
        got = ema_update(zero, one, jax.numpy.asarray(10**7), 0.9999, warmup)["w"]
        np.testing.assert_allclose(got, 1e-4, rtol=1e-6)


def test_ema_stays_float32_with_bfloat16_parameters():
    got = ema_update({"w": jax.numpy.ones(3)}, {"w": jax.numpy.full(3, 2, jax.numpy.bfloat16)}, 0, 0.999)["w"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, 1.001, rtol=1e-6)
