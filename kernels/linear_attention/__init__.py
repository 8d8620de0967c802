"""Linear attention: a state that sums keys times values stands for all the tokens it has seen."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from vision_jax.kernels import dispatch
from vision_jax.kernels.linear_attention import fast_path, head_packs, rotary_tables, token_tiles, xla
from vision_jax.kernels.linear_attention.chunks import Chunks
from vision_jax.kernels.linear_attention.head_packs import HeadPacks
from vision_jax.kernels.packed_heads import Heads
from vision_jax.kernels.rotation import grid_angles, rotate

from vision_jax.errors import InputError
from vision_jax.mesh import local_shape, over_mesh, split_axes

TOKENS = ("batch", None, "heads", None)  # what splits the dimensions of tokens on a mesh


def linear_attention(
    q, k, v, *, log_decay=None, causal=False, reverse=False, normalizer=None, rotary=None, epsilon=0.0,
    initial_state=None, return_state=False, chunk_size=None, implementation=None,
):  # fmt: skip
    """Attention without softmax, at a cost linear in the tokens (Katharopoulos et al., 2020, arXiv:2006.16236).

    Every token adds k_n v_n^T to a state S and reads q_n S. Non-causal: all read the sum over all tokens. Causal:

        S_n = exp(log_decay_n) S_{n-1} + k_n v_n^T        out_n = q_n S_n

    where the decay is none (linear attention), one a head (retention: Sun et al., 2023, arXiv:2307.08621, equation 6),
    one a token and head (SSD: Dao & Gu, 2024, arXiv:2405.21060, section 2.3), or one a token, head and key channel
    (gated: Yang et al., 2024, arXiv:2312.06635, equation 3). Feature maps and scales are applied to q and k before.
    Differentiable in every array argument.

    Args:
      q: queries [B, N, heads, head_dim]; the non-causal form takes [B, *spatial, heads, head_dim].
      k: keys [B, N, key_heads, head_dim]; v: values [B, N, value_heads, value_dim]. Either's number of heads divides
        that of q: each serves several query heads.
      log_decay: logarithms of the decays, at most 0 (-inf forgets everything): [heads], [B, N, heads] or
        [B, N, heads, head_dim]; or None. Needs causal.
      causal: token n sees the tokens up to itself, not all.
      reverse: run from the last token to the first: token n sees itself and what follows. Needs causal.
      normalizer: what the result is divided by. None: nothing (retention, SSD, gated). True: the sum of the weights
        q_n . k_m, decayed alike. (qn, kn), of the shapes of q and k: that of qn_n . kn_m, where other features weigh
        than are summed. A token whose divisor is 0 gives 0, with gradient 0.
      rotary: angles by which q and k are turned where they are summed and read, not where they normalise (RoFormer: Su
        et al., 2021, arXiv:2104.09864, equation 19): for each axis of the tokens an array [size, pairs], in radians. A
        pair is two neighbouring channels; the first axis turns the first pairs, and all axes together head_dim / 2.
        They are constants, known while JAX traces, and have no gradient: to ask for one is an error.
      epsilon: added to that divisor.
      initial_state: the state before the first token (the last, if reversed), [B, heads, head_dim, value_dim]; with a
        normalizer a pair of that and the sum of the keys [B, heads, head_dim].
      return_state: return the state after the last token (the first, if reversed) too, in the form of initial_state.
      chunk_size: tokens whose pairs are formed at once in the causal form; None chooses. Results do not depend on it.
      implementation: "xla", "tpu" or "gpu"; None is the TPU's kernel there, where it takes the call and is causal or
        rotates, else XLA (`vision_jax.kernels.explain` says which and why). By name only: the TPU's kernel where a call
        does neither, for XLA may move less; the kernels for sm_90 GPUs, which have not run on one yet.

    Returns:
      [B, N, heads, value_dim] (or with q's spatial axes) in v's dtype; or (that, state). States are at least float32.

    Raises:
      InputError: shapes or options that do not fit together; a decay known to be positive; an implementation that
        cannot run.
    """
    _check_operands(q, k, v, causal)
    _check_options(causal, log_decay=log_decay, reverse=reverse or None, chunk_size=chunk_size)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise InputError(f"chunk_size={chunk_size!r}: an int of at least 1, or None")
    _check_decay(q, log_decay)
    _check_normalizer(q, k, normalizer, epsilon)
    _check_state(q, v, normalizer, initial_state)
    rotary = None if rotary is None else rotary_tables.check(q, rotary)
    names = ("batch", *(None,) * (q.ndim - 3), "heads", None)
    axes = split_axes({"batch": [q.shape[0]], "heads": [x.shape[-2] for x in (q, k, v)]})
    local = local_shape(q.shape, names, axes)
    heads, tokens = Heads(*local[-2:]), math.prod(local[1:-2])
    plain = (q, k) if normalizer is True else normalizer
    given = dict(
        causal=causal, log_decay=log_decay, normalizer=normalizer if rotary is None else plain, epsilon=epsilon,
        has_state=initial_state is not None or return_state, chunk_size=chunk_size,
    )  # fmt: skip
    kernels = {"tpu": fast_path, "gpu": head_packs}
    refusals = {name: functools.partial(kernel.refusal, q, k, v, local, **given) for name, kernel in kernels.items()}
    rotates = rotary is not None and not causal and token_tiles.rotates(tokens, len(rotary[-1]), heads)
    by_name = {"tpu": fast_path.only_by_name(causal, rotates)}
    chosen = dispatch.choose("linear_attention", local, implementation, refusals, by_name)
    if rotary is not None and not (rotates and chosen == "tpu"):
        angles, normalizer, rotary = grid_angles(rotary), plain, None
        q, k = rotate(q, angles), rotate(k, angles)
    if chosen == "xla":
        out, state = xla.linear_attention(
            q, k, v, log_decay=log_decay, causal=causal, reverse=reverse, normalizer=normalizer, epsilon=epsilon,
            initial_state=initial_state, chunk_size=chunk_size,
        )  # fmt: skip
        return (out, state) if return_state else out
    layout = local[0], tokens, heads
    # Kernels are imported where one runs: Pallas takes its time, and not every build of JAX has Mosaic GPU.
    if causal and chosen == "gpu":
        from vision_jax.kernels.linear_attention import gpu_causal

        attend = functools.partial(gpu_causal.linear_attention, layout=HeadPacks(*layout), reverse=reverse)
    elif causal:
        from vision_jax.kernels.linear_attention import tpu_causal

        chunks = Chunks(*layout, bool(reverse), bool(return_state), normalizer is not None, epsilon)
        attend = functools.partial(tpu_causal.linear_attention, chunks=chunks)
    elif chosen == "gpu":
        from vision_jax.kernels.linear_attention import gpu

        attend = functools.partial(gpu.linear_attention, layout=HeadPacks(*layout))
    else:
        from vision_jax.kernels.linear_attention import tpu

        tables, row = (rotary_tables.tables(rotary, heads), len(rotary[-1])) if rotary is not None else (None, 0)
        attend = functools.partial(tpu.linear_attention, tables=tables, tiles=token_tiles.TokenTiles(*layout, row))
    if causal:
        return _causal(attend, q, k, v, log_decay, normalizer, initial_state, return_state, axes)
    return _global(attend, q, k, v, normalizer, epsilon, axes)


def _global(attend, q, k, v, normalizer, epsilon, axes):
    """Where every token sees all, by a kernel."""
    pair = normalizer if isinstance(normalizer, (tuple, list)) else (None, None)
    operands = [x if x is None else x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (q, k, v, *pair)]
    attend = functools.partial(attend, normalized=normalizer is not None, epsilon=epsilon)
    return over_mesh(attend, operands, (TOKENS,) * len(operands), TOKENS, axes).reshape(q.shape)


def _causal(attend, q, k, v, log_decay, normalizer, state, return_state, axes):
    """The causal form, by a kernel."""
    names_of_decay, names_of_state = ("batch", None, "heads"), ("batch", "heads", None, None)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, (1, *q.shape[1:3]))
        names_of_decay = (None, None, "heads")
    elif log_decay is not None and log_decay.ndim == 4:
        names_of_decay = TOKENS
    if normalizer is None:
        states, names_of_states = (state,), [names_of_state]
    else:
        states, names_of_states = state or (None, None), [names_of_state, names_of_state[:3]]
    returned = names_of_states if return_state else []

    def run(*operands):
        return attend(*operands)[: 1 + len(returned)]

    out, *last = over_mesh(
        run,
        (q, k, v, log_decay, *states),
        (TOKENS, TOKENS, TOKENS, names_of_decay, *names_of_states),
        [TOKENS, *returned],
        axes,
    )
    if not return_state:
        return out
    return out, last[0] if normalizer is None else tuple(last)


def _check_operands(q, k, v, causal):
    shapes = f"q, k, v of shapes {q.shape}, {k.shape}, {v.shape}"
    if causal and q.ndim != 4:
        raise InputError(f"{shapes}: [B, N, heads, head_dim] each where causal, for tokens need an order")
    if q.ndim < 4 or not q.ndim == k.ndim == v.ndim:
        raise InputError(f"{shapes}: [B, *spatial, heads, head_dim] each")
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        raise InputError(f"{shapes}: batch and tokens must be the same")
    if q.shape[-1] != k.shape[-1]:
        raise InputError(f"{shapes}: q and k must have one head_dim")
    for name, x in (("k", k), ("v", v)):
        if not x.shape[-2] or q.shape[-2] % x.shape[-2]:
            raise InputError(f"{name} has {x.shape[-2]} heads, which do not divide the {q.shape[-2]} of q")


def _check_options(causal, **options):
    for name, value in options.items():
        if value is not None and not causal:
            raise InputError(f"{name} is for causal=True: without it every token sees all")


def _check_decay(q, log_decay):
    if log_decay is None:
        return
    B, N, heads, head_dim = q.shape
    allowed = ((heads,), (B, N, heads), (B, N, heads, head_dim))
    if jnp.shape(log_decay) not in allowed:
        raise InputError(f"log_decay of shape {jnp.shape(log_decay)}: one of {', '.join(map(str, allowed))}")
    seen = not isinstance(log_decay, jax.core.Tracer) and getattr(log_decay, "is_fully_addressable", True)
    if seen and not (np.asarray(log_decay) <= 0).all():
        raise InputError(f"log_decay up to {np.max(log_decay)}: it must be at most 0, for the state not to grow")


def _check_normalizer(q, k, normalizer, epsilon):
    if normalizer is None:
        if epsilon:
            raise InputError(f"epsilon={epsilon} is added to the divisor: give a normalizer")
    elif normalizer is not True:
        if not isinstance(normalizer, (tuple, list)) or len(normalizer) != 2:
            raise InputError(f"normalizer={normalizer!r}: None, True, or a pair (qn, kn)")
        shapes = tuple(jnp.shape(x) for x in normalizer)
        if shapes != (q.shape, k.shape):
            raise InputError(f"normalizer of shapes {shapes}: {(q.shape, k.shape)}, those of q and k")


def _check_state(q, v, normalizer, state):
    if state is None:
        return
    sums = (q.shape[0], *q.shape[-2:])
    if normalizer is None:
        if jnp.shape(state) != (*sums, v.shape[-1]):
            raise InputError(f"initial_state of shape {jnp.shape(state)}: {(*sums, v.shape[-1])}")
    elif not isinstance(state, (tuple, list)) or tuple(map(jnp.shape, state)) != ((*sums, v.shape[-1]), sums):
        given = tuple(map(jnp.shape, state)) if isinstance(state, (tuple, list)) else jnp.shape(state)
        raise InputError(f"initial_state of shapes {given}: a pair {((*sums, v.shape[-1]), sums)} with a normalizer")
