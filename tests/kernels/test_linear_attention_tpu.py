"""The TPU kernels against the XLA path in Pallas's interpreter, and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from vision_jax.kernels import dispatch, explain, linear_attention
from vision_jax.kernels.linear_attention import chunks, reference, token_tiles
from vision_jax.kernels.packed_heads import Heads

import tpu as pod
from vision_jax.errors import InputError
from vision_jax.mesh import make_mesh

pytestmark = pytest.mark.heavy


def call(
    batch=1, tokens=(5, 7), heads=4, head_dim=32, normalizer=None, decay=None, weak=1, state=False, pairs=(), **options
):
    """(arrays by name, options) of a call, float32; features of a normaliser are positive, `weak` scales decays.

    `pairs`: of channels that each axis of the tokens turns.
    """
    rng = np.random.default_rng(0)
    spatial = tokens if isinstance(tokens, tuple) else (tokens,)
    shape = (batch, *spatial, heads, head_dim)
    if pairs:
        options["rotary"] = tuple(
            np.random.default_rng(3).normal(size=sizes) for sizes in zip(spatial, pairs, strict=True)
        )

    def feature():
        return np.abs(rng.normal(size=shape)) if normalizer else rng.normal(size=shape)

    arrays = dict(q=feature(), k=feature(), v=rng.normal(size=shape))
    if normalizer == "pair":
        arrays["normalizer"] = (np.abs(rng.normal(size=shape)), np.abs(rng.normal(size=shape)))
    elif normalizer:
        options["normalizer"] = True
    if decay is not None:
        of_decay = {"head": (heads,), "token": shape[:-1], "channel": shape}[decay]
        arrays["log_decay"] = -weak * rng.exponential(size=of_decay) * rng.choice([0.01, 1.0, 10.0], size=of_decay)
    if state:
        sums = rng.normal(size=(batch, heads, head_dim, head_dim))
        arrays["initial_state"] = (sums, np.abs(rng.normal(size=sums.shape[:3]))) if normalizer else sums
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays), options


def attend(arrays, options, implementation):
    return linear_attention(**arrays, **options, implementation=implementation)


CALLS = {
    "two images a step": call(batch=2, normalizer=True, epsilon=0.1),
    "two blocks of lanes, a pair": call(tokens=24, heads=8, normalizer="pair", epsilon=0.1),
    "not normalised": call(tokens=(3, 11), heads=3),
    "a block that is no whole register": call(tokens=16, heads=6, normalizer=True),
    "heads across registers": call(tokens=9, heads=8, head_dim=48, normalizer=True),
    "wide heads": call(tokens=9, heads=2, head_dim=160, normalizer="pair"),
    "several tiles": call(batch=2, tokens=96, normalizer="pair"),
    "a tail": call(tokens=75, heads=8, normalizer=True, epsilon=1e-3),
    "a tail, not normalised": call(batch=2, tokens=75, heads=2),
    "rotated": call(batch=2, tokens=(5, 7), pairs=(9, 7), normalizer=True, epsilon=0.1),
    "rotated, not normalised": call(tokens=(5, 7), heads=2, pairs=(0, 16)),
    "rotated, two blocks of lanes, several tiles": call(tokens=(12, 8), heads=8, pairs=(8, 8), normalizer=True),
    "rotated, a tail, no whole register": call(batch=2, tokens=(11, 8), heads=6, pairs=(8, 8), normalizer=True),
    "rotated, other queries and keys normalise": call(
        tokens=(3, 16), heads=2, head_dim=96, pairs=(24, 24), normalizer="pair"
    ),
    "rotated, rows too long for a tile": call(tokens=(3, 27), pairs=(8, 8), normalizer=True),
    "rotated along one axis": call(batch=2, tokens=24, pairs=(16,), normalizer=True),
    "rotated along three axes": call(tokens=(2, 3, 16), pairs=(4, 4, 8), normalizer=True),
    "causal, rotated": call(tokens=40, pairs=(16,), causal=True),
    "causal": call(batch=2, tokens=64, heads=8, causal=True),
    "a decay a head, state in and out": call(
        batch=2, tokens=75, decay="head", state=True, return_state=True, causal=True
    ),
    "a decay a token, state in and out, reversed": call(
        batch=2, tokens=75, heads=8, decay="token", state=True, return_state=True, causal=True, reverse=True
    ),
    "a decay a token, one chunk": call(tokens=17, heads=3, decay="token", causal=True),
    "causal, heads across registers": call(
        tokens=40, heads=8, head_dim=48, decay="token", return_state=True, causal=True
    ),
    "causal, no whole register": call(tokens=33, heads=5, decay="head", state=True, causal=True, reverse=True),
    "causal, normalised": call(batch=2, tokens=75, heads=8, normalizer=True, epsilon=0.1, causal=True),
    "causal, normalised, a decay a token, states in and out, reversed": call(
        batch=2,
        tokens=75,
        normalizer=True,
        decay="token",
        weak=0.01,
        state=True,
        return_state=True,
        causal=True,
        reverse=True,
    ),
    "causal, normalised, a decay a head, states out": call(
        tokens=40, heads=3, head_dim=48, normalizer=True, decay="head", return_state=True, causal=True
    ),
    "a decay a channel, state in and out": call(
        batch=2, tokens=75, heads=8, decay="channel", weak=0.02, state=True, return_state=True, causal=True
    ),
    "a decay a channel, strong and weak, reversed": call(
        tokens=50, heads=3, decay="channel", causal=True, reverse=True
    ),
    "a decay a channel, heads across registers, normalised": call(
        tokens=40,
        heads=8,
        head_dim=48,
        normalizer=True,
        decay="channel",
        weak=0.02,
        state=True,
        return_state=True,
        causal=True,
        reverse=True,
    ),
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of at most 64 tokens of 128 lanes, and chunks of 32, for few tokens to take several."""
    monkeypatch.setattr(token_tiles, "TILE", 64 * 128)
    monkeypatch.setattr(chunks, "CHUNK", 32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_equals_the_xla_path(name):
    pod.assert_equals_xla(attend, *CALLS[name])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", ["rotated, a tail, no whole register", "a decay a head, state in and out"])
def test_no_race_between_steps(name):
    """Buffers are those of a device here, and what nobody wrote is NaN: past the tail too."""
    arrays, options = CALLS[name]

    def total(arrays, implementation):
        return sum((x**2).sum() for x in jax.tree.leaves(attend(arrays, options, implementation)))

    with dispatch.interpreted(pltpu.InterpretParams(detect_races=True)):
        gradients = jax.jit(jax.grad(total), static_argnums=1)(arrays, "tpu")
    pod.assert_close(gradients, jax.jit(jax.grad(total), static_argnums=1)(arrays, "xla"), 1e-4)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def test_blocks_are_fetched_no_more_than_needed():
    """Once for each phase that reads them, wherever the index changes in the order of the grid."""
    tiles = token_tiles.TokenTiles(2, 5000, Heads(8, 32))

    def fetches(*used):
        grid, index = np.ndindex(tiles.grid(len(used))), tiles.block_index(used)
        places = [tuple(map(int, index(*at))) for at in grid]
        return sum(here != before for here, before in zip(places, [None, *places], strict=False))

    steps = tiles.heads.steps * tiles.batch // tiles.step_images * tiles.tiles
    assert tiles.tiles > 2
    assert fetches(0, 1) == fetches(1, 0) == fetches(0, 1, 0) == fetches(0, 0, 1) == steps
    assert fetches(1, 0, 1) == 2 * steps


@pytest.mark.parametrize(
    "changed",
    [
        {},
        dict(normalizer=True),
        dict(normalizer="pair"),
        dict(normalizer=True, tokens=(6, 16), pairs=(8, 8)),
        dict(causal=True, decay="token"),
        dict(causal=True, decay="token", normalizer=True),
        dict(causal=True, decay="channel", weak=0.1),
    ],
)
def test_bfloat16_is_as_near_as_the_xla_path(changed):
    """Output and gradients; those of the definition are the XLA path's in float64, which equals it."""
    arrays, options = call(**dict(tokens=196) | changed)
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), arrays)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=arrays["q"].shape), jnp.bfloat16)

    @functools.partial(jax.jit, static_argnums=1)
    def run(arrays, implementation):
        out, pull = jax.vjp(lambda arrays: attend(arrays, options, implementation), arrays)
        return jax.tree.leaves((out, pull(weight.astype(out.dtype))[0]))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), narrow)
        exact = jax.tree.map(np.asarray, run(wide, "xla"))
    numbers = jax.tree.map(np.asarray, wide)
    np.testing.assert_allclose(exact[0], reference.linear_attention(**numbers, **options)[0], rtol=1e-9, atol=1e-9)

    def errors(implementation):
        found = run(narrow, implementation)
        return [np.sqrt(np.mean((np.asarray(a, np.float64) - b) ** 2)) for a, b in zip(found, exact, strict=True)]

    with dispatch.interpreted():
        for ours, theirs in zip(errors("tpu"), errors("xla"), strict=True):
            assert ours < 1.5 * theirs


@pytest.mark.parametrize("causal", [False, True])
def test_a_divisor_of_zero_gives_zero_and_passes_no_gradient(causal):
    arrays, options = call(tokens=35, normalizer=True, causal=causal)
    arrays["q"] = arrays["q"].at[:, 17].set(0)
    with dispatch.interpreted():
        out = attend(arrays, options, "tpu")
        gradients = jax.grad(lambda arrays: attend(arrays, options, "tpu").sum())(arrays)
    assert not out[:, 17].any()
    assert not gradients["q"][:, 17].any()
    assert out[:, 18].any()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize(("kind", "reverse"), [("token", False), ("token", True), ("channel", False)])
def test_extreme_decays(kind, reverse):
    """Nothing kept, everything kept, and a thousand nats before tokens that keep: nothing cancels, nothing is NaN."""
    arrays, options = call(tokens=140, heads=2, head_dim=8, decay=kind, causal=True, reverse=reverse)
    shape = arrays["log_decay"].shape
    decay = np.random.default_rng(2).choice([0.0, -0.05, -1e-3, -20.0, -1e3, -1e4, -np.inf], size=shape)
    arrays["log_decay"] = jnp.asarray(decay, jnp.float32)
    numbers = jax.tree.map(np.asarray, arrays)

    def total(arrays, implementation):
        return (attend(arrays, options, implementation) ** 2).sum()

    with dispatch.interpreted():
        out = attend(arrays, options, "tpu")
        gradients = jax.jit(jax.grad(total), static_argnums=1)(arrays, "tpu")
    np.testing.assert_allclose(out, reference.linear_attention(**numbers, **options)[0], rtol=1e-5, atol=1e-5)
    pod.assert_close(gradients, jax.jit(jax.grad(total), static_argnums=1)(arrays, "xla"), 1e-4)


MESH_CALLS = {
    "normalised": call(batch=4, heads=8, head_dim=16, normalizer="pair"),
    "rotated": call(batch=4, heads=8, head_dim=16, pairs=(4, 4), normalizer=True),
    "a decay a head": call(batch=4, tokens=12, heads=8, head_dim=16, decay="head", causal=True),
    "a decay a token, a state": call(
        batch=4, tokens=12, heads=8, head_dim=16, decay="token", state=True, return_state=True, causal=True
    ),
}


@pytest.mark.parametrize("name", MESH_CALLS)
def test_a_mesh_splits_batch_and_heads(name):
    arrays, options = MESH_CALLS[name]

    def total(arrays):
        return sum((x**2).sum() for x in jax.tree.leaves(attend(arrays, options, "tpu")))

    with dispatch.interpreted():
        expected = jax.jit(jax.grad(total))(arrays)
        with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
            gradients = jax.jit(jax.grad(total))(arrays)
    pod.assert_close(gradients, expected, 1e-4)


def test_a_pod_needs_no_collective_on_a_map():
    """Its block with projections, forward and gradient, over fsdp and tensor: maps stay where they are."""

    def attend(q, k, v):
        rotary = (np.outer(np.arange(16), np.arange(8)),) * 2
        y = linear_attention(jnp.exp(q), jnp.exp(k), v, normalizer=True, rotary=rotary)
        rows = [x.reshape(len(x), -1, *x.shape[3:]) for x in (y, k, v)]
        return linear_attention(*rows, log_decay=-jnp.arange(1.0, 17.0), causal=True).reshape(y.shape)

    text = pod.block_on_a_pod(attend)
    assert "%linear_attention_backward" in text
    assert "%causal_linear_attention_backward" in text
    assert not pod.moves_a_map(text)


def test_explain_says_why_xla_runs():
    def refused(heads=4, head_dim=32, key_heads=None, tokens=64, **options):
        q, k = (jax.ShapeDtypeStruct((2, tokens, n, head_dim), jnp.bfloat16) for n in (heads, key_heads or heads))
        with jax.set_mesh(pod.mesh("v5e")):
            (choice,) = explain(functools.partial(linear_attention, **options), q, k, k)
        return choice.refused.get("tpu", "")

    turned = dict(rotary=(np.zeros((64, 16)),), normalizer=True)
    assert refused(**turned, epsilon=1e-6) == ""
    assert refused(implementation="tpu") == ""
    assert refused().startswith("by implementation='tpu' only: all see all and nothing is rotated")
    assert refused(normalizer=True) == refused()
    assert refused(rotary=(np.zeros((4099, 16)),), tokens=4099) == refused()  # no tile takes a row
    assert "normalizer (qn, kn)" in refused(**turned, causal=True)
    assert refused(rotary=turned["rotary"], causal=True) == ""
    assert "epsilon must be a Python number" in refused(normalizer=True, epsilon=np.ones(()))
    assert "a state without causal" in refused(return_state=True)
    assert "q's heads and head_dim" in refused(key_heads=2)
    assert "blocks of at most 1024" in refused(heads=13, head_dim=80)
    assert refused(causal=True, reverse=True, return_state=True) == ""
    assert refused(causal=True, normalizer=True, return_state=True) == ""
    assert refused(causal=True, log_decay=np.zeros((2, 64, 4, 32))) == ""
    assert "channels of 960 in a block" in refused(15, 64, causal=True, log_decay=np.zeros((2, 64, 15, 64)))
    assert "normalizer (qn, kn)" in refused(causal=True, normalizer=(jnp.ones((2, 64, 4, 32), jnp.bfloat16),) * 2)
    assert "chunk_size=32: the kernel's is 128" in refused(causal=True, chunk_size=32)
    assert "18 heads in a block of 576 channels" in refused(causal=True, heads=18)
    assert "no multiple of 8" in refused(causal=True, head_dim=4)
    wide = functools.partial(linear_attention, implementation="tpu")
    with jax.enable_x64(True), dispatch.interpreted(), pytest.raises(InputError, match="all operands must be bfloat16"):
        wide(*[jnp.ones((1, 2, 1, 8), jnp.float64)] * 3)


@pytest.mark.parametrize("pairs", [(), (8, 8)])
def test_the_residuals_are_the_operands(pairs):
    """And tables of a row and a column where these are turned; nothing that was turned."""
    arrays, options = call(batch=2, normalizer=True, pairs=pairs)
    tables = 2 * (5 + 7) * 4 * 32 if pairs else 0
    kept = sum(leaf.size for leaf in pod.residuals(attend, arrays, options))
    assert kept <= 3 * arrays["q"].size + tables


def test_what_the_causal_form_keeps():
    """Beside the operands the state before each chunk: head_dim rows of all channels for 128 tokens."""
    arrays, options = call(tokens=512, heads=8, decay="token", causal=True)
    with dispatch.interpreted():
        kept = jax.eval_shape(lambda arrays: jax.vjp(lambda arrays: attend(arrays, options, "tpu"), arrays)[1], arrays)
    states = 4 * 32 * 8 * 32
    assert sum(leaf.size for leaf in jax.tree.leaves(kept) if leaf.ndim) == 3 * arrays["q"].size + 512 * 8 + states
