"""The GPU kernels: against the XLA path in Pallas's interpreter, and lowered for an H200.

As for windows, neither shows that the compiled kernels compute the same, nor how fast.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import dispatch, linear_attention
from vision_jax.kernels.linear_attention import head_packs, reference

import gpu
import tpu

pytestmark = pytest.mark.heavy


def call(batch=1, size=(100,), heads=2, head_dim=32, pair=False, decay=None, state=False, **options):
    """({name: array}, options) of a call; with a pair of normalizers, a decay a head or token, an initial state."""
    rng = np.random.default_rng(0)
    shape = (batch, *size, heads, head_dim)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3)]
    if pair or options.get("normalizer"):  # features that weigh are positive
        arrays[:2] = [jnp.exp(x) for x in arrays[:2]]
    arrays = dict(zip("qkv", arrays, strict=True))
    if pair:
        arrays["normalizer"] = tuple(jnp.exp(-arrays[name]) for name in "qk")
    if decay:
        of_decay = {"head": (heads,), "token": shape[:-1]}[decay]
        # few are strong, so that something passes every tile
        weak = rng.choice([0.001, 0.01, 1.0], of_decay, p=[0.5, 0.48, 0.02]) if decay == "token" else 0.02
        arrays["log_decay"] = jnp.asarray(-weak * rng.exponential(size=of_decay), jnp.float32)
    if state:
        arrays["initial_state"] = jnp.asarray(rng.normal(size=(batch, heads, head_dim, head_dim)), jnp.float32)
    return arrays, options


def attend(arrays, options, implementation):
    return linear_attention(**arrays, implementation=implementation, **options)


@pytest.fixture
def few_blocks(monkeypatch):
    """Some blocks then take several tiles, one after the other."""
    monkeypatch.setattr(head_packs, "BLOCKS", 3)


CALLS = {
    "two packs of heads, three tiles": call(size=(192,), heads=4),
    "normalised, several tiles of a map, padded": call(size=(15, 15), normalizer=True, epsilon=1.0),
    "a normalizer of its own": call(batch=2, head_dim=64, pair=True, size=(70,)),
    "narrow heads": call(head_dim=16, heads=4, normalizer=True),
    "causal, two images": call(batch=2, size=(70,), heads=4, causal=True),
    "a decay a token, three tiles, state in and out": call(
        size=(150,), decay="token", causal=True, state=True, return_state=True
    ),
    "a decay a token, reversed, a state": call(
        batch=2, head_dim=64, heads=1, decay="token", causal=True, reverse=True, state=True
    ),
    "a decay a head, narrow heads": call(
        batch=2, size=(130,), head_dim=16, heads=4, decay="head", causal=True, return_state=True
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernels_equal_the_xla_path_in_float32(name, few_blocks):
    gpu.assert_equals_xla(attend, *CALLS[name])


@pytest.mark.parametrize("options", [dict(normalizer=True), dict(causal=True, decay="token")])
def test_no_race_between_copies(options, monkeypatch):
    """Of one block: to the interpreter, waiting for a copy is waiting for all that were begun before it."""
    monkeypatch.setattr(head_packs, "BLOCKS", 1)
    gpu.assert_no_race(attend, *call(size=(4 * 64,), **options))


@pytest.mark.parametrize("options", [dict(), dict(normalizer=True), dict(causal=True), dict(causal=True, decay="head")])
def test_bfloat16_is_as_near_as_the_xla_path(options):
    arrays, options = call(size=(140,), **options)
    exact = reference.linear_attention(**{n: np.asarray(a, np.float64) for n, a in arrays.items()}, **options)[0]
    tpu.assert_as_near(attend, arrays, options, exact, "gpu")


def test_a_state_is_not_rounded():
    """What is read of it alone is the nearest number of bfloat16, nearly always; what passes is as exact as float32."""
    arrays, options = call(size=(130,), causal=True, decay="head", state=True, return_state=True)
    q, weights = np.asarray(arrays["q"], np.float64), np.random.default_rng(2).normal(size=(1, 2, 32, 32))
    arrays |= {name: jnp.zeros_like(arrays[name]) for name in "kv"}

    def read(arrays):
        out, state = attend(arrays, options, "gpu")
        return (state * weights).sum(), out

    with dispatch.interpreted():
        (total, out), gradients = jax.jit(jax.value_and_grad(read, has_aux=True))(arrays)
    decay, state = (np.asarray(arrays[name], np.float64) for name in ("log_decay", "initial_state"))
    left = np.exp(decay * np.arange(1, 131)[:, None])  # [N, heads]
    exact = jnp.asarray(np.einsum("bnhd,bhde,nh->bnhe", q, state, left), jnp.bfloat16)
    assert np.mean(np.asarray(out == exact)) > 0.98
    of_heads = (left[-1] * (state * weights).sum((0, 2, 3))).astype(np.float32)
    np.testing.assert_allclose(total, of_heads.sum(), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(gradients["log_decay"], 130 * of_heads, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(gradients["initial_state"], left[-1][:, None, None] * weights, rtol=1e-5, atol=1e-6)


def test_a_divisor_of_zero_gives_zero():
    arrays, options = call(size=(64,), normalizer=True)
    gpu.assert_equals_xla(attend, arrays | {"q": arrays["q"].at[:, 3].set(0)}, options)


def test_a_token_that_forgets_everything():
    """As where two pictures follow one another."""
    arrays, options = call(size=(100,), decay="token", causal=True)
    gpu.assert_equals_xla(attend, arrays | {"log_decay": arrays["log_decay"].at[:, 40].set(-jnp.inf)}, options)


def gradient(q, k, v, **options):
    def total(*a):
        return linear_attention(*a, **options).astype(jnp.float32).sum()

    return jax.value_and_grad(total, (0, 1, 2))(q, k, v)


STAGES = {  # (tokens, heads, head_dim, options)
    "ravlt, 56 x 56": ((56, 56), 2, 32, dict(normalizer=True)),
    "14 x 14, heads of 64": ((14, 14), 4, 64, dict(normalizer=True)),
    "65,536 tokens": ((65_536,), 8, 32, {}),
    "heads of 16": ((4096,), 8, 16, dict(normalizer=True)),
    "causal, 65,536 tokens": ((65_536,), 8, 32, dict(causal=True)),
    "vir, 14 x 14": ((196,), 12, 64, dict(causal=True, log_decay=-np.ones(12, np.float32))),
    "causal, heads of 16": ((49,), 4, 16, dict(causal=True, reverse=True, log_decay=-np.ones((2, 49, 4), np.float32))),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_models_lower(stage):
    """Forward and backward, asked for by name."""
    size, heads, head_dim, options = STAGES[stage]
    operand = jax.ShapeDtypeStruct((2, *size, heads, head_dim), jnp.bfloat16)
    text = gpu.lower(functools.partial(gradient, implementation="gpu", **options), operand, operand, operand)
    kernels = 2 if "causal" in options else 5  # state and result; state, queries, keys
    assert text.count("stablehlo.custom_call @mosaic_gpu_v2") == kernels
    assert "scatter" not in text


@pytest.mark.parametrize("options", [dict(normalizer=True), dict(causal=True, log_decay=-np.ones(8, np.float32))])
def test_a_mesh_splits_batch_and_heads(options):
    """Each of 8 GPUs computes its images and heads, and nothing is exchanged."""
    operand = jax.ShapeDtypeStruct((8, 256, 8, 32), jnp.bfloat16)
    step = functools.partial(gradient, implementation="gpu", **options)
    text = gpu.lower(step, operand, operand, operand, data=2, fsdp=2, tensor=2)
    calls = [line for line in text.splitlines() if "stablehlo.custom_call @mosaic_gpu_v2" in line]
    assert len(calls) == (2 if "causal" in options else 5)
    assert all("tensor<2x256x128xbf16>" in line for line in calls)  # 2 images, 4 heads of 32 channels
    if "causal" in options:  # the decays of all images, 2 packs, 4 tiles
        assert all("tensor<1x2x4x5x64xf32>" in line for line in calls)
    assert not any(collective in text for collective in ("all_reduce", "all_gather", "all_to_all"))


REFUSED = {  # why -> what is unlike a call that is taken
    "TF32": dict(dtype=jnp.float32),
    "head_dim=48": dict(head_dim=48),
    "do not fill packs": dict(heads=3),
    "causal with a normalizer": dict(causal=True, normalizer=True),
    "a state": dict(return_state=True),
    "chunk_size=16": dict(causal=True, chunk_size=16),
    "decays of single channels": dict(causal=True, decay=(1, 64, 2, 32)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_kernels_do_not_take_is_refused(why):
    given = dict(heads=2, head_dim=32, dtype=jnp.bfloat16) | REFUSED[why]
    operand = jax.ShapeDtypeStruct((1, 64, given.pop("heads"), given.pop("head_dim")), given.pop("dtype"))
    if "decay" in given:
        given["log_decay"] = -jnp.ones(given.pop("decay"))
    gpu.assert_refused(why, functools.partial(linear_attention, **given), operand, operand, operand)


def test_xla_runs_where_the_kernels_are_not_named():
    operand = jax.ShapeDtypeStruct((1, 64, 2, 32), jnp.bfloat16)
    gpu.assert_by_name_only(linear_attention, operand, operand, operand)


def test_the_residuals_are_the_operands():
    arrays, options = call(normalizer=True)
    kept = tpu.residuals(attend, arrays, options, "gpu")
    assert sum(leaf.size for leaf in kept if leaf.ndim > 2) <= 3 * arrays["q"].size


def test_the_causal_form_keeps_states_of_twice_a_maps_bytes():
    arrays, options = call(size=(256,), causal=True, decay="head")
    kept = tpu.residuals(attend, arrays, options, "gpu")
    assert sum(leaf.nbytes for leaf in kept) < 5.2 * arrays["q"].nbytes  # with q, k, v
