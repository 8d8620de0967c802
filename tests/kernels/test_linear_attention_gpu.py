"""The GPU kernels: against the XLA path in Pallas's interpreter, and lowered for an H200.

As for windows, neither shows that the compiled kernels compute the same, nor how fast.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import linear_attention
from vision_jax.kernels.linear_attention import head_packs, reference

import gpu
import tpu

pytestmark = pytest.mark.heavy


def call(batch=1, size=(100,), heads=2, head_dim=32, pair=False, **options):
    """(arrays q, k, v, qn, kn; options) of a call, bfloat16; with a pair of normalizers, or None for them."""
    rng = np.random.default_rng(0)
    shape = (batch, *size, heads, head_dim)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3)]
    if pair or options.get("normalizer"):  # features that weigh are positive
        arrays[:2] = [jnp.exp(x) for x in arrays[:2]]
    return [*arrays, *([jnp.exp(-x) for x in arrays[:2]] if pair else [None, None])], options


def attend(arrays, options, implementation):
    q, k, v, qn, kn = arrays
    options = options if qn is None else dict(options, normalizer=(qn, kn))
    return linear_attention(q, k, v, implementation=implementation, **options)


@pytest.fixture
def few_blocks(monkeypatch):
    """Some blocks then take several tiles, one after the other."""
    monkeypatch.setattr(head_packs, "BLOCKS", 3)


CALLS = {
    "two packs of heads, three tiles": call(size=(192,), heads=4),
    "normalised, several tiles of a map, padded": call(size=(15, 15), normalizer=True, epsilon=1.0),
    "a normalizer of its own": call(batch=2, head_dim=64, pair=True, size=(70,)),
    "narrow heads": call(head_dim=16, heads=4, normalizer=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernels_equal_the_xla_path_in_float32(name, few_blocks):
    gpu.assert_equals_xla(attend, *CALLS[name])


def test_no_race_between_copies(monkeypatch):
    """Of one block: to the interpreter, waiting for a copy is waiting for all that were begun before it."""
    monkeypatch.setattr(head_packs, "BLOCKS", 1)
    gpu.assert_no_race(attend, *call(size=(4 * 64,), normalizer=True))


@pytest.mark.parametrize("normalizer", [None, True])
def test_bfloat16_is_as_near_as_the_xla_path(normalizer):
    arrays, options = call(size=(140,), normalizer=normalizer)
    exact = reference.linear_attention(*(np.asarray(a, np.float64) for a in arrays[:3]), normalizer=normalizer)[0]
    tpu.assert_as_near(attend, arrays, options, exact, "gpu")


def test_a_divisor_of_zero_gives_zero():
    arrays, options = call(size=(64,), normalizer=True)
    arrays[0] = arrays[0].at[:, 3].set(0)
    gpu.assert_equals_xla(attend, arrays, options)


def gradient(q, k, v, **options):
    def total(*a):
        return linear_attention(*a, **options).astype(jnp.float32).sum()

    return jax.value_and_grad(total, (0, 1, 2))(q, k, v)


STAGES = {  # (tokens, heads, head_dim, normalizer)
    "ravlt, 56 x 56": ((56, 56), 2, 32, True),
    "14 x 14, heads of 64": ((14, 14), 4, 64, True),
    "65,536 tokens": ((65_536,), 8, 32, None),
    "heads of 16": ((4096,), 8, 16, True),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_models_lower(stage):
    """Forward and backward, asked for by name."""
    size, heads, head_dim, normalizer = STAGES[stage]
    operand = jax.ShapeDtypeStruct((2, *size, heads, head_dim), jnp.bfloat16)
    step = functools.partial(gradient, normalizer=normalizer, implementation="gpu")
    text = gpu.lower(step, operand, operand, operand)
    assert text.count("stablehlo.custom_call @mosaic_gpu_v2") == 5  # state and result; state, queries, keys
    assert "scatter" not in text


def test_a_mesh_splits_batch_and_heads():
    """Each of 8 GPUs computes its images and heads, and nothing is exchanged."""
    operand = jax.ShapeDtypeStruct((8, 256, 8, 32), jnp.bfloat16)
    step = functools.partial(gradient, normalizer=True, implementation="gpu")
    text = gpu.lower(step, operand, operand, operand, data=2, fsdp=2, tensor=2)
    calls = [line for line in text.splitlines() if "stablehlo.custom_call @mosaic_gpu_v2" in line]
    assert len(calls) == 5
    assert all("tensor<2x256x128xbf16>" in line for line in calls)  # 2 images, 4 heads of 32 channels
    assert not any(collective in text for collective in ("all_reduce", "all_gather", "all_to_all"))


REFUSED = {  # why -> what is unlike a call that is taken
    "TF32": dict(dtype=jnp.float32),
    "head_dim=48": dict(head_dim=48),
    "do not fill packs": dict(heads=3),
    "causal": dict(causal=True),
    "a state": dict(return_state=True),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_kernels_do_not_take_is_refused(why):
    given = dict(heads=2, head_dim=32, dtype=jnp.bfloat16) | REFUSED[why]
    operand = jax.ShapeDtypeStruct((1, 64, given.pop("heads"), given.pop("head_dim")), given.pop("dtype"))
    gpu.assert_refused(why, functools.partial(linear_attention, **given), operand, operand, operand)


def test_xla_runs_where_the_kernels_are_not_named():
    operand = jax.ShapeDtypeStruct((1, 64, 2, 32), jnp.bfloat16)
    gpu.assert_by_name_only(linear_attention, operand, operand, operand)


def test_the_residuals_are_the_operands():
    arrays, options = call(normalizer=True)
    kept = tpu.residuals(attend, arrays, options, "gpu")
    assert sum(leaf.size for leaf in kept if leaf.ndim > 2) <= 3 * arrays[0].size
