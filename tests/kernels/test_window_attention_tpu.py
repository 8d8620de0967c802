"""The TPU kernel: against the XLA path in Pallas's interpreter, and through the compilers of three generations.

The interpreter shows what a kernel computes and takes what the compilers refuse, so that each needs the other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, explain, window_attention
from vision_jax.kernels.window_attention import reference

import tpu as pod

pytestmark = pytest.mark.heavy


def call(batch=1, size=(8, 8), heads=4, head_dim=32, window=(4, 4), bias=None, key_mask=False, **options):
    """(arrays q, k, v, bias, scale; options with the mask) of a call, float32."""
    rng = np.random.default_rng(0)
    tokens = window[0] * window[1]
    of_bias = {"all": (heads,), "each": (size[0] * size[1] // tokens, heads)}
    arrays = [rng.normal(size=(batch, *size, heads, head_dim)) for _ in range(3)]
    arrays.append(None if bias is None else rng.normal(size=(*of_bias[bias], tokens, tokens)))
    arrays.append(rng.uniform(0.1, 0.5, heads))
    mask = rng.random((batch, *size)) < 0.3 if key_mask else None
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays), dict(options, window_size=window, key_mask=mask)


def attend(arrays, options, implementation):
    q, k, v, bias, scale = arrays
    return window_attention(q, k, v, bias=bias, scale=scale, implementation=implementation, **options)


CALLS = {
    "two bands, two images": call(batch=2, heads=3),
    "shifted, a bias": call(batch=2, size=(12, 16), shift=(3, 1), bias="all"),  # two copies of each buffer
    "each window its bias": call(heads=2, shift=(1, 2), bias="each", key_mask=True),
    "columns shifted": call(size=(8, 16), heads=8, shift=(0, 1)),
    "a grid": call(batch=2, size=(8, 12), heads=2, window=(2, 3), dilation=(4, 2), bias="each"),
    "odd windows": call(size=(14, 7), heads=3, window=(7, 7), bias="all", key_mask=True),
    "heads across tiles": call(size=(4, 8), heads=4, head_dim=48, bias="all"),
    "wide heads": call(size=(4, 4), heads=2, head_dim=160),
    "stripes": call(size=(8, 4), heads=1, window=(8, 1), shift=(1, 0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_equals_the_xla_path(name):
    pod.assert_equals_xla(attend, *CALLS[name])


def test_no_race_between_copies():
    arrays, options = CALLS["shifted, a bias"]
    with dispatch.interpreted(pltpu.InterpretParams(detect_races=True)):
        out = jax.jit(lambda arrays: attend(arrays, options, "tpu"))(arrays)
    np.testing.assert_allclose(out, attend(arrays, options, "xla"), atol=1e-5)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def test_bfloat16_is_as_near_as_the_xla_path():
    arrays, options = call(batch=2, heads=4, shift=(1, 1), bias="all")
    arrays = [*(a.astype(jnp.bfloat16) for a in arrays[:3]), *arrays[3:]]
    given = [np.asarray(a, np.float64) for a in arrays]
    settings = {name: (value, value) if isinstance(value, int) else value for name, value in options.items()}
    exact = reference.window_attention(*given[:3], bias=given[3], scale=given[4], **settings)[0]
    pod.assert_as_near(attend, arrays, options, exact)


def test_a_mesh_splits_batch_and_heads():
    """8 devices compute what one does; the only collective is the sum of the bias's gradient over the batch."""
    arrays, options = call(batch=4, size=(4, 4), heads=8, window=(4, 4), bias="all")
    pod.assert_a_mesh_changes_nothing(attend, arrays, options)


def shapes(batch, size, heads, head_dim, tokens, dtype):
    operand = jax.ShapeDtypeStruct((batch, *size, heads, head_dim), dtype)
    return [operand, operand, operand, jax.ShapeDtypeStruct((heads, tokens, tokens), jnp.float32)]


def gradient(q, k, v, bias, **options):
    def total(*a):
        return window_attention(*a[:3], bias=a[3], **options).astype(jnp.float32).sum()

    return jax.value_and_grad(total, (0, 1, 2, 3))(q, k, v, bias)


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_it(generation):
    """Swin's shifted stage in bfloat16, forward and backward, chosen without being asked for."""
    mesh = pod.mesh(generation)
    step = functools.partial(gradient, window_size=7, shift=3)
    text = pod.compile_for(mesh, step, *shapes(1, (14, 28), 4, 32, 49, jnp.bfloat16)).as_text()
    assert "window_attention_backward" in text


STAGES = {  # (size, heads, head_dim, options), of models at 224 and at 1,024 pixels
    "swin_t 1": ((56, 56), 3, 32, dict(window_size=7, shift=3)),
    "swin_t 2": ((28, 28), 6, 32, dict(window_size=7, shift=3)),
    "swin_t 3": ((14, 14), 12, 32, dict(window_size=7, shift=3)),
    "swin_t 4": ((7, 7), 24, 32, dict(window_size=7)),
    "swin_b 1": ((56, 56), 4, 32, dict(window_size=7)),
    "swin_b 1 at 1024": ((256, 256), 4, 32, dict(window_size=8, shift=4)),
    "swin_b 3 at 1024": ((64, 64), 16, 32, dict(window_size=8, shift=4)),
    "swin_v2_b 1 of 16": ((64, 64), 4, 32, dict(window_size=16, shift=8)),
    "maxvit_t 1 grid": ((56, 56), 2, 32, dict(window_size=7, dilation=8)),
    "maxvit_t 3 grid": ((14, 14), 8, 32, dict(window_size=7, dilation=2)),
    "rows of RMT": ((56, 56), 2, 32, dict(window_size=(1, 56))),
    "columns of RMT": ((14, 14), 8, 32, dict(window_size=(14, 1))),
    "stripes of CSWin": ((56, 56), 1, 32, dict(window_size=(56, 1))),
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(STAGES, ["swin_t 1", "swin_v2_b 1 of 16"]))
def test_stages_of_models_compile(stage, generation):
    size, heads, head_dim, options = STAGES[stage]
    window = options["window_size"]
    tokens = window**2 if isinstance(window, int) else window[0] * window[1]
    # float32 not where its six passes take a minute to compile
    for dtype in (jnp.bfloat16, jnp.float32)[: 2 if tokens < 256 else 1]:
        step = functools.partial(gradient, implementation="tpu", **options)
        pod.compile_for(pod.mesh(generation), step, *shapes(8, size, heads, head_dim, tokens, dtype))


def test_a_pod_needs_no_collective_on_a_map():
    """Its block with projections, forward and gradient, over fsdp and tensor: maps stay where they are."""
    attend = functools.partial(window_attention, window_size=8, shift=4)
    text = pod.block_on_a_pod(lambda q, k, v, bias: attend(q, k, v, bias=bias), bias=(16, 64, 64))
    assert "window_attention_backward" in text
    assert not pod.moves_a_map(text)


def test_explain_says_what_runs_and_why():
    operand = jax.ShapeDtypeStruct((8, 16, 16, 8, 32), jnp.bfloat16)
    attend = functools.partial(window_attention, window_size=8)
    (choice,) = explain(attend, operand, operand, operand)
    assert choice.implementation == "xla"
    assert choice.refused["tpu"] == "this program is for a cpu"
    with jax.set_mesh(pod.mesh("v5e", data=2, tensor=4)):
        taken, halo = explain(lambda *a: [attend(*a), attend(*a, halo=1)], operand, operand, operand)
    assert taken.implementation == "tpu"
    assert taken.shape == (4, 16, 16, 2, 32)
    assert "xla (tpu: halo: through XLA only" in str(halo)
    operand = jax.ShapeDtypeStruct((8, 96, 96, 4, 32), jnp.bfloat16)
    with jax.set_mesh(pod.mesh("v5p")):  # Swin V2's at 384 pixels: its tables are larger than this chip's VMEM
        (large,) = explain(lambda *a: window_attention(*a, window_size=24, shift=12), operand, operand, operand)
    assert "does not fit in VMEM" in large.refused["tpu"]


def test_the_residuals_are_the_operands():
    """No probabilities are kept: what the backward pass is given has no dimension of window tokens but the bias's."""
    arrays, options = CALLS["shifted, a bias"]
    kept = pod.residuals(attend, arrays, options)
    assert sum(leaf.size for leaf in kept if leaf.ndim > 3) <= 3 * arrays[0].size
