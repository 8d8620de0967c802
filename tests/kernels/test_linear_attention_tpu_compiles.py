"""The TPU kernels through the compilers of three generations, at the shapes of models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision_jax.kernels import linear_attention

import tpu as pod

pytestmark = pytest.mark.heavy


def gradient(q, k, v, **options):
    def total(*a):
        return linear_attention(*a, **options).astype(jnp.float32).sum()

    return jax.value_and_grad(total, (0, 1, 2))(q, k, v)


def shapes(batch, tokens, heads, head_dim, dtype):
    return [jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), dtype)] * 3


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_it(generation):
    """A stage in bfloat16, forward and backward."""
    step = functools.partial(gradient, normalizer=True, implementation="tpu")
    compiled = pod.compile_for(pod.mesh(generation), step, *shapes(2, 196, 4, 32, jnp.bfloat16))
    assert "linear_attention_backward" in compiled.as_text()


def causal_gradient(q, k, v, log_decay, state, **options):
    def total(*operands):
        q, k, v, log_decay, state = operands
        options_of_state = dict(initial_state=state, return_state=state is not None)
        out = linear_attention(q, k, v, log_decay=log_decay, causal=True, **options_of_state, **options)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(out))

    return jax.value_and_grad(total, range(5))(q, k, v, log_decay, state)


def causal_shapes(batch, tokens, heads, head_dim, dtype, by_channel=False):
    decay = jax.ShapeDtypeStruct((batch, tokens, heads, *[head_dim] * by_channel), jnp.float32)
    state = jax.ShapeDtypeStruct((batch, heads, head_dim, head_dim), jnp.float32)
    return [*shapes(batch, tokens, heads, head_dim, dtype), decay, state]


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_the_causal_form(generation, by_channel):
    operands = causal_shapes(2, 197, 4, 32, jnp.bfloat16, by_channel)
    compiled = pod.compile_for(pod.mesh(generation), causal_gradient, *operands)
    assert "causal_linear_attention_backward" in compiled.as_text()


STAGES = {  # (tokens, heads, head_dim): of models at 224 pixels, odd counts of tokens, and long rows
    "ravlt 1": (3136, 1, 64),
    "ravlt 2": (784, 2, 64),
    "ravlt 3": (196, 4, 64),
    "ravlt 4": (49, 8, 64),
    "l2vit 1": (3136, 3, 32),
    "l2vit 2": (784, 6, 32),
    "l2vit 3": (196, 12, 32),
    "l2vit 4": (49, 24, 32),
    "vir small": (197, 6, 64),
    "vir base": (197, 12, 64),
    "4,096 of 32": (4096, 4, 32),
    "4,096 of 64": (4096, 8, 64),
    "65,536 of 32": (65536, 4, 32),
    "65,536 of 64": (65536, 2, 64),
    "a tail": (4097, 4, 32),
    "heads across registers": (784, 8, 48),
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(STAGES, ["65,536 of 64", "a tail"]))
def test_stages_of_models_compile(stage, generation):
    for dtype in (jnp.bfloat16, jnp.float32):
        for normalizer in (None, True):
            step = functools.partial(gradient, normalizer=normalizer, implementation="tpu")
            pod.compile_for(pod.mesh(generation), step, *shapes(8, *STAGES[stage], dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(["ravlt 1", "ravlt 4", "a tail"]))
def test_a_normalizer_of_its_own_compiles(stage, generation):
    def step(q, k, v, qn, kn):
        def total(q, k, v, *pair):
            return linear_attention(q, k, v, normalizer=pair, implementation="tpu").astype(jnp.float32).sum()

        return jax.grad(total, range(5))(q, k, v, qn, kn)

    for dtype in (jnp.bfloat16, jnp.float32):
        operands = shapes(8, *STAGES[stage], dtype)
        pod.compile_for(pod.mesh(generation), step, *operands, *operands[:2])


def rotated_gradient(q, k, v):
    """The angles of a map, half of the pairs an axis."""
    rotary = tuple(np.outer(np.arange(size), np.arange(q.shape[-1] // 4)) for size in q.shape[1:-2])
    return gradient(q, k, v, normalizer=True, rotary=rotary)


MAPS = {  # RAVLT's at 224 pixels, and larger ones; odd sizes; one or two columns, and one row that is no whole tile
    "ravlt_t 1": (56, 56, 1, 64),
    "ravlt_t 2": (28, 28, 2, 64),
    "ravlt_b 2": (28, 28, 2, 96),
    "64 x 64": (64, 64, 2, 96),
    "256 x 256": (256, 256, 2, 96),
    "a tail": (75, 75, 1, 64),
    "odd": (15, 15, 4, 32),
    "two columns": (512, 2, 2, 64),
    "a column": (700, 1, 2, 64),
    "a row": (1, 700, 2, 64),
}


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_rotation(generation):
    """Chosen without being asked for, by tables of a row and a column."""
    q = jax.ShapeDtypeStruct((2, 28, 28, 2, 64), jnp.bfloat16)
    text = pod.compile_for(pod.mesh(generation), rotated_gradient, q, q, q).as_text()
    assert "linear_attention_backward" in text
    assert "f32[2,28,128]" in text
    assert "f32[784" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("size", "generation"), pod.in_turns(MAPS, ["64 x 64", "a tail"]))
def test_rotated_maps_compile(size, generation):
    for dtype in (jnp.bfloat16, jnp.float32):
        operands = [jax.ShapeDtypeStruct((8, *MAPS[size]), dtype)] * 3
        pod.compile_for(pod.mesh(generation), rotated_gradient, *operands)


CAUSAL_STAGES = ["vir small", "vir base", "l2vit 2", "4,096 of 32", "4,096 of 64", "65,536 of 32", "l2vit 4"]
CAUSAL_STAGES += ["heads across registers"]


@pytest.mark.slow
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(CAUSAL_STAGES, ["4,096 of 64"]))
def test_causal_stages_compile(stage, generation, by_channel):
    for dtype in (jnp.bfloat16, jnp.float32):
        for reverse in (False, True):
            step = functools.partial(causal_gradient, reverse=reverse, implementation="tpu")
            pod.compile_for(pod.mesh(generation), step, *causal_shapes(8, *STAGES[stage], dtype, by_channel))


def normalized_gradient(q, k, v, log_decay, state, keys, **options):
    def total(*operands):
        q, k, v, log_decay, state, keys = operands
        options_of_state = dict(initial_state=(state, keys), return_state=True, normalizer=True)
        out = linear_attention(q, k, v, log_decay=log_decay, causal=True, **options_of_state, **options)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(out))

    return jax.value_and_grad(total, range(6))(q, k, v, log_decay, state, keys)


@pytest.mark.parametrize("generation", pod.GENERATIONS)
def test_the_compilers_take_the_causal_form_normalised(generation):
    operands = causal_shapes(2, 197, 4, 32, jnp.bfloat16)
    keys = jax.ShapeDtypeStruct(operands[-1].shape[:3], jnp.float32)
    compiled = pod.compile_for(pod.mesh(generation), normalized_gradient, *operands, keys)
    assert "causal_linear_attention_backward" in compiled.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(["vir small", "4,096 of 64", "l2vit 4"]))
def test_causal_stages_normalised_compile(stage, generation, by_channel):
    for dtype in (jnp.bfloat16, jnp.float32):
        operands = causal_shapes(8, *STAGES[stage], dtype, by_channel)
        keys = jax.ShapeDtypeStruct(operands[-1].shape[:3], jnp.float32)
        step = functools.partial(normalized_gradient, implementation="tpu")
        pod.compile_for(pod.mesh(generation), step, *operands, keys)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "generation"), pod.in_turns(["vir small", "l2vit 1"]))
def test_causal_stages_with_a_decay_a_head_or_none_compile(stage, generation):
    for dtype in (jnp.bfloat16, jnp.float32):
        q, k, v = shapes(8, *STAGES[stage], dtype)
        decay = jax.ShapeDtypeStruct(q.shape[2:3], jnp.float32)
        step = functools.partial(causal_gradient, state=None, implementation="tpu")
        pod.compile_for(pod.mesh(generation), step, q, k, v, decay)
        pod.compile_for(pod.mesh(generation), functools.partial(step, log_decay=None), q, k, v)
