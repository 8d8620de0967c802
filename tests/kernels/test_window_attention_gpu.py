"""The GPU kernel: against the XLA path in Pallas's interpreter, and lowered for an H200.

The interpreter shows what a kernel computes and takes what the compiler refuses, so that each needs the other. Neither
shows that the compiled kernel computes the same, nor how fast.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import explain, window_attention
from vision_jax.kernels.window_attention import reference, runs

import gpu
import tpu

pytestmark = pytest.mark.heavy


def call(batch=1, size=(8, 8), heads=2, head_dim=32, window=(4, 4), bias=False, key_mask=False, **options):
    """(arrays q, k, v, bias, scale; options with the mask) of a call; maps are bfloat16."""
    rng = np.random.default_rng(0)
    tokens = window[0] * window[1]
    arrays = [jnp.asarray(rng.normal(size=(batch, *size, heads, head_dim)), jnp.bfloat16) for _ in range(3)]
    arrays.append(jnp.asarray(rng.normal(size=(heads, tokens, tokens)), jnp.float32) if bias else None)
    arrays.append(jnp.asarray(rng.uniform(0.1, 0.5, heads), jnp.float32))
    mask = jnp.asarray(rng.random((batch, *size)) < 0.3) if key_mask else None
    return arrays, dict(options, window_size=window, key_mask=mask)


def attend(arrays, options, implementation):
    q, k, v, bias, scale = arrays
    return window_attention(q, k, v, bias=bias, scale=scale, implementation=implementation, **options)


@pytest.fixture
def few_blocks(monkeypatch):
    """Each block then takes several windows, one after the other."""
    monkeypatch.setattr(runs, "BLOCKS", 4)


CALLS = {
    "no slot without a token": call(size=(8, 16), window=(8, 8)),
    "shifted, a bias": call(size=(14, 14), window=(7, 7), shift=(3, 3), bias=True),
    "a mask, and windows without a key": call(size=(8, 10), window=(4, 5), shift=(1, 2), key_mask=True),
    "a grid": call(batch=2, size=(8, 12), head_dim=64, window=(2, 3), dilation=(4, 2), bias=True, key_mask=True),
    "stripes": call(size=(8, 4), heads=1, window=(8, 1), shift=(2, 0), bias=True),
    "narrow heads": call(size=(4, 8), heads=3, head_dim=16, bias=True),
    "several tiles of queries": call(size=(14, 28), heads=1, window=(14, 14), shift=(7, 7), bias=True, key_mask=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_equals_the_xla_path_in_float32(name, few_blocks):
    gpu.assert_equals_xla(attend, *CALLS[name])


def test_no_race_between_copies(few_blocks):
    gpu.assert_no_race(attend, *CALLS["shifted, a bias"])


def test_bfloat16_is_as_near_as_the_xla_path():
    arrays, options = call(size=(7, 14), window=(7, 7), shift=(3, 3), bias=True)
    given = [np.asarray(a, np.float64) for a in arrays]
    exact = reference.window_attention(*given[:3], bias=given[3], scale=given[4], window_size=(7, 7), shift=(3, 3))[0]
    tpu.assert_as_near(attend, arrays, options, exact, "gpu")


def shapes(batch, size, heads, head_dim, tokens):
    operand = jax.ShapeDtypeStruct((batch, *size, heads, head_dim), jnp.bfloat16)
    return [operand, operand, operand, jax.ShapeDtypeStruct((heads, tokens, tokens), jnp.float32)]


def gradient(q, k, v, bias, **options):
    def total(*a):
        return window_attention(*a[:3], bias=a[3], **options).astype(jnp.float32).sum()

    return jax.value_and_grad(total, (0, 1, 2, 3))(q, k, v, bias)


STAGES = {  # (size, heads, head_dim, options), of models at 224 and at 1,024 pixels
    "swin_t 1": ((56, 56), 3, 32, dict(window_size=7, shift=3)),
    "swin_t 4": ((7, 7), 24, 32, dict(window_size=7)),
    "swin_b 1 at 1024": ((256, 256), 4, 32, dict(window_size=8, shift=4)),
    "swin_v2_b 1 of 16": ((64, 64), 4, 32, dict(window_size=16, shift=8)),
    "maxvit_t 1 grid": ((56, 56), 2, 32, dict(window_size=7, dilation=8)),
    "rows of RMT": ((56, 56), 2, 32, dict(window_size=(1, 56))),
    "columns of RMT": ((14, 14), 8, 32, dict(window_size=(14, 1))),
    "heads of 64": ((14, 14), 4, 64, dict(window_size=7, shift=3)),
    "heads of 128": ((14, 14), 2, 128, dict(window_size=7, shift=3)),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_models_lower(stage):
    """Forward and backward, asked for by name."""
    size, heads, head_dim, options = STAGES[stage]
    window = options["window_size"]
    tokens = window**2 if isinstance(window, int) else window[0] * window[1]
    step = functools.partial(gradient, implementation="gpu", **options)
    text = gpu.lower(step, *shapes(2, size, heads, head_dim, tokens))
    kernels = text.count("stablehlo.custom_call @mosaic_gpu_v2")
    assert kernels == (2 if stage != "swin_v2_b 1 of 16" else 1)  # its gradient is XLA's


def test_a_mesh_splits_batch_and_heads():
    """Each of 8 GPUs computes its images and heads; the only collective sums the bias's gradient over the batch."""
    step = functools.partial(gradient, window_size=7, shift=3, implementation="gpu")
    text = gpu.lower(step, *shapes(8, (14, 14), 4, 32, 49), data=2, fsdp=2, tensor=2)
    calls = [line for line in text.splitlines() if "stablehlo.custom_call @mosaic_gpu_v2" in line]
    assert len(calls) == 2
    for line in calls:
        assert line.count("tensor<28x14x64xbf16>") in (4, 7)  # 2 images of 14 rows, 2 heads of 32 channels
    assert text.count("stablehlo.all_reduce") == 1
    assert "all_gather" not in text
    assert "all_to_all" not in text


def test_head_dims_that_are_multiples_of_16_lower():
    for head_dim in (16, 48, 80, 96):
        step = functools.partial(gradient, window_size=7, shift=3, implementation="gpu")
        gpu.lower(step, *shapes(1, (14, 14), 2, head_dim, 49))


REFUSED = {  # why -> what is unlike `call()`
    "TF32": dict(dtype=jnp.float32),
    "a bias for each window": dict(bias=(4, 2, 16, 16)),
    "head_dim=24": dict(head_dim=24),
    "at most|are the most": dict(size=(24, 24), window=(24, 24)),
    "shared memory": dict(size=(16, 16), window=(16, 16), head_dim=64),
    "return_lse": dict(return_lse=True),
    "halo": dict(halo=1),
    "shift with dilation": dict(window=(2, 2), dilation=2, shift=1),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_kernel_does_not_take_is_refused(why):
    given = dict(size=(8, 8), window=(4, 4), head_dim=32, dtype=jnp.bfloat16, bias=None) | REFUSED[why]
    operand = jax.ShapeDtypeStruct((1, *given.pop("size"), 2, given.pop("head_dim")), given.pop("dtype"))
    shape = given.pop("bias")
    bias = None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32)
    attend = functools.partial(window_attention, window_size=given.pop("window"), **given)
    gpu.assert_refused(why, attend, operand, operand, operand, bias=bias)


def test_xla_runs_where_the_kernel_is_not_named():
    operand = jax.ShapeDtypeStruct((1, 8, 8, 2, 32), jnp.bfloat16)
    gpu.assert_by_name_only(functools.partial(window_attention, window_size=4), operand, operand, operand)


def test_an_older_gpu_takes_xla():
    operand = jax.ShapeDtypeStruct((1, 8, 8, 2, 32), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(gpu.mesh("NVIDIA A100-SXM4-80GB", 108)):
        (choice,) = explain(functools.partial(window_attention, window_size=4), operand, operand, operand)
    assert choice.implementation == "xla"
    assert "sm_90" in choice.refused["gpu"]


def test_the_residuals_are_the_operands():
    arrays, options = CALLS["shifted, a bias"]
    kept = tpu.residuals(attend, arrays, options, "gpu")
    assert sum(leaf.size for leaf in kept if leaf.ndim > 3) <= 3 * arrays[0].size


def test_slots_begin_where_copies_may():
    """Every piece of every window begins at a multiple of 128 bytes, and each token of a map lies in one slot."""
    for head_dim in (16, 32, 48, 64):
        for window, shift in (((7, 7), (3, 3)), ((5, 6), (2, 1)), ((3, 1), (1, 0))):
            size = (2 * window[0], 3 * window[1])
            layout = runs.Runs(2, size, window, shift, (1, 1), 2, head_dim)
            assert len(set(layout.slots.tolist())) == layout.tokens
            found = np.zeros((2 * size[0], size[1]), int)
            for window_number in range(2 * layout.windows):
                for slots, (y, x, lanes) in layout.places(jnp.int32(window_number), jnp.int32(1)):
                    assert slots.start * 2 * head_dim % 128 == 0
                    assert int(lanes.start) == head_dim
                    found[int(y), int(x.start) : int(x.start) + x.size] += 1
            assert (found == 1).all()
