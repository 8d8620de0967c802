"""The GPU kernels: against the XLA path in Pallas's interpreter, and lowered for an H200.

As for windows, neither shows that the compiled kernels compute the same, nor how fast.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import neighborhood_attention
from vision_jax.kernels.neighborhood_attention import rectangles, reference
from vision_jax.kernels.neighborhood_attention.windows import axis_windows

import gpu
import tpu

pytestmark = pytest.mark.heavy


def call(batch=1, size=(16, 16), heads=1, head_dim=32, kernel_size=5, bias=False, **options):
    """(arrays q, k, v, bias; options) of a call; maps are bfloat16."""
    rng = np.random.default_rng(0)
    kernel = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * len(size)
    arrays = [jnp.asarray(rng.normal(size=(batch, *size, heads, head_dim)), jnp.bfloat16) for _ in range(3)]
    table = rng.normal(size=(heads, *(2 * k - 1 for k in kernel)))
    arrays.append(jnp.asarray(table, jnp.float32) if bias else None)
    return arrays, dict(options, kernel_size=kernel_size)


def attend(arrays, options, implementation):
    q, k, v, bias = arrays
    return neighborhood_attention(q, k, v, bias=bias, implementation=implementation, **options)


@pytest.fixture
def few_blocks(monkeypatch):
    """Each block of the bias's gradient then takes several tiles, one after the other."""
    monkeypatch.setattr(rectangles, "BLOCKS", 2)


CALLS = {
    "several chunks, a bias, the log-sum-exp": call(size=(16, 24), kernel_size=7, bias=True, return_lse=True),
    "padded, causal": call(size=(11, 13), kernel_size=3, is_causal=(True, False), bias=True),
    "strided, masked border": call(size=(9, 16), heads=2, stride=(3, 2), border="mask"),
    "dilated, wide heads, several chunks": call(size=(40, 8), head_dim=64, kernel_size=(13, 3), dilation=(2, 1)),
    "a row, narrow heads": call(size=(80,), head_dim=16, kernel_size=7, bias=True, return_lse=True),
    "one tile of several images": call(batch=3, size=(7, 7), kernel_size=7, bias=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernels_equal_the_xla_path_in_float32(name, few_blocks):
    gpu.assert_equals_xla(attend, *CALLS[name])


def test_no_race_between_copies(few_blocks):
    """Of three chunks: to the interpreter, waiting for a copy is waiting for all that were begun before it."""
    gpu.assert_no_race(attend, *call(size=(16, 16), head_dim=128, kernel_size=7, bias=True))


def test_bfloat16_is_as_near_as_the_xla_path():
    arrays, options = call(size=(8, 16), bias=True)
    given = [np.asarray(a, np.float64) for a in arrays]
    pairs = dict(kernel_size=(5, 5), stride=(1, 1), dilation=(1, 1), is_causal=(False, False), border="shift")
    exact = reference.neighborhood_attention(*given[:3], bias=given[3], scale=32**-0.5, **pairs)[0]
    tpu.assert_as_near(attend, arrays, options, exact, "gpu")


def shapes(batch, size, heads, head_dim, kernel_size):
    operand = jax.ShapeDtypeStruct((batch, *size, heads, head_dim), jnp.bfloat16)
    return [operand] * 3 + [jax.ShapeDtypeStruct((heads, *(2 * kernel_size - 1 for _ in size)), jnp.float32)]


def gradient(q, k, v, bias=None, **options):
    def total(q, k, v, bias):
        return neighborhood_attention(q, k, v, bias=bias, **options).astype(jnp.float32).sum()

    return jax.value_and_grad(total, (0, 1, 2) if bias is None else (0, 1, 2, 3))(q, k, v, bias)


STAGES = {  # (size, heads, head_dim, kernel_size, dilation, with a bias)
    "nat_b 1": ((56, 56), 4, 32, 7, 1, True),
    "nat_b 2": ((28, 28), 8, 32, 7, 1, False),
    "nat_b 4": ((7, 7), 32, 32, 7, 1, True),
    "dinat 2 of 4": ((28, 28), 8, 32, 7, 4, True),
    "64 x 64 of 13": ((64, 64), 4, 32, 13, 1, False),
    "256 x 256 of 31": ((256, 256), 8, 64, 31, 1, False),
    "a row of 4,096": ((4096,), 4, 32, 13, 1, True),
    "heads of 128": ((32, 32), 2, 128, 7, 1, True),
    "heads of 48": ((14, 14), 2, 48, 7, 1, True),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_models_lower(stage):
    """Forward and backward, asked for by name."""
    size, heads, head_dim, kernel_size, dilation, biased = STAGES[stage]
    step = functools.partial(gradient, kernel_size=kernel_size, dilation=dilation, implementation="gpu")
    text = gpu.lower(step, *shapes(2, size, heads, head_dim, kernel_size)[: 3 + biased])
    assert text.count("stablehlo.custom_call @mosaic_gpu_v2") == 3 + biased
    assert "scatter" not in text  # which on a GPU sums in no fixed order


def test_a_mesh_splits_batch_and_heads():
    """Each of 8 GPUs computes its images and heads; the only collective sums the bias's gradient over the batch."""
    step = functools.partial(gradient, kernel_size=7, implementation="gpu")
    text = gpu.lower(step, *shapes(8, (16, 16), 4, 32, 7), data=2, fsdp=2, tensor=2)
    calls = [line for line in text.splitlines() if "stablehlo.custom_call @mosaic_gpu_v2" in line]
    assert len(calls) == 4
    assert all("tensor<2x256x64xbf16>" in line for line in calls)  # 2 images, 2 heads of 32 channels
    assert text.count("stablehlo.all_reduce") == 1
    assert "all_gather" not in text
    assert "all_to_all" not in text


REFUSED = {  # why -> what is unlike a call that is taken
    "TF32": dict(dtype=jnp.float32),
    "head_dim=24": dict(head_dim=24),
    "three axes": dict(size=(8, 8, 8)),
    "border='zero'": dict(border="zero"),
    "dilation=3 does not divide the 16": dict(dilation=3),
    "more than 256 columns": dict(size=(512,), kernel_size=255),
    "table of the bias": dict(size=(256, 256), heads=8, kernel_size=31, bias=(8, 61, 61)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_kernels_do_not_take_is_refused(why):
    given = dict(size=(16, 16), heads=2, head_dim=32, dtype=jnp.bfloat16, bias=None, kernel_size=3) | REFUSED[why]
    shape = 1, *given.pop("size"), given.pop("heads"), given.pop("head_dim")
    operand, bias = jax.ShapeDtypeStruct(shape, given.pop("dtype")), given.pop("bias")
    bias = None if bias is None else jax.ShapeDtypeStruct(bias, jnp.float32)
    gpu.assert_refused(why, functools.partial(neighborhood_attention, **given), operand, operand, operand, bias=bias)


def test_xla_runs_where_the_kernels_are_not_named():
    operand = jax.ShapeDtypeStruct((1, 16, 16, 2, 32), jnp.bfloat16)
    gpu.assert_by_name_only(functools.partial(neighborhood_attention, kernel_size=3), operand, operand, operand)


def test_the_residuals_are_operands_output_and_log_sum_exp():
    arrays, options = call(size=(16, 16), bias=True)
    kept = tpu.residuals(attend, arrays, options, "gpu")
    tokens = 16 * 16
    assert sum(leaf.size for leaf in kept if leaf.ndim > 3) <= 4 * arrays[0].size + tokens


LAYOUTS = [
    (size, kernel_size, stride, is_causal, border)
    for size in ((7, 7), (5, 40), (1, 150), (33, 18))
    for kernel_size in ((1, 3), (1, 5))
    for stride in ((1, 1), (1, 3))
    for is_causal in ((False, False), (False, True))
    for border in ("shift", "mask")
]


def test_rectangles_hold_every_pair_once():
    """Pairs that the bounds of both cuts let through are those of the windows."""
    for size, kernel_size, stride, is_causal, border in LAYOUTS:
        options = dict(kernel_size=kernel_size, stride=stride, dilation=(1, 1), is_causal=is_causal, border=border)
        layout = rectangles.Rectangles.of((1, *size, 1, 32), options)
        for axis, length in enumerate(size):
            windows = axis_windows(length, kernel_size[axis], stride[axis], 1, is_causal[axis], border)
            key = np.arange(length)
            wanted = (key >= windows.start[:, None]) & (key < windows.stop[:, None])
            for cut in (layout.by_queries, layout.by_keys):
                found = pairs(cut, axis)
                found = found if cut.of_queries else found.T
                np.testing.assert_array_equal(found[:length, :length], wanted)


def pairs(cut, axis):
    """bool [tokens, tokens that they share windows with] of an axis."""
    found = np.zeros((2 * cut.padded[axis],) * 2, bool)
    own, places = cut.axes[axis], np.arange(cut.others[axis])
    for tile, (first, pattern) in enumerate(zip(own.first, own.pattern, strict=True)):
        assert 0 <= first <= cut.padded[axis] - cut.others[axis]
        assert first % (rectangles.STEP if axis else 1) == 0
        assert own.offset[pattern] == tile * cut.tile[axis] - first
        seen = (places >= own.start[pattern][:, None]) & (places < own.stop[pattern][:, None])
        rows = slice(tile * cut.tile[axis], (tile + 1) * cut.tile[axis])
        found[rows, first : first + cut.others[axis]] = seen
    return found
