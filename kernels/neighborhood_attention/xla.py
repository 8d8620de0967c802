"""Neighborhood attention in plain JAX: tiles of queries against their halos of keys, as masked matrix products.

A loop takes as many tiles at a time as have about as many scores as the map has elements. The backward pass is the same
loop over recomputed scores; kept are the operands, the output and the log-sum-exp. Sums run in a fixed order.
"""

import functools

import jax
import jax.numpy as jnp
from vision_jax.kernels.neighborhood_attention import plans, tiling


def neighborhood_attention(
    q, k, v, *, kernel_size, stride, dilation, is_causal, border, bias, scale, additional_keys, additional_values,
    additional_bias,
):  # fmt: skip
    """(output [B, *sizes, heads, Dv], log-sum-exp [B, *sizes, heads]); arguments are checked, options are tuples."""
    head_dim = max(q.shape[-1], v.shape[-1])
    plan = plans.make_plan(q.shape[1:-2], kernel_size, stride, dilation, is_causal, border, head_dim)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if additional_keys is None:
        return attend(plan, scale, v.dtype, q, k, v, bias)
    out, lse = attend(plan, scale, wide, q, k, v, bias)
    return join_additional(out, lse, q, additional_keys, additional_values, additional_bias, scale)


def join_additional(out, lse, q, k, v, bias, scale):
    """(output in v's dtype, log-sum-exp) of a neighborhood's, in at least float32, and additional keys' attention.

    Args:
      out, lse: of the neighborhood alone.
      q, k, v, bias, scale: as `attend_additional` takes them.
    """
    more, more_lse = attend_additional(q, k, v, bias, scale)
    total = jnp.logaddexp(lse, more_lse)
    out = out * jnp.exp(lse - total)[..., None] + more * jnp.exp(more_lse - total)[..., None]
    return out.astype(v.dtype), total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(plan, scale, dtype, q, k, v, bias):
    """Attention to the neighborhood alone: (output in `dtype`, log-sum-exp)."""
    wide, key_heads = jnp.promote_types(q.dtype, jnp.float32), k.shape[-2]
    halo_bias = _halo_bias(bias, plan, key_heads, wide)
    q = tiling.to_groups(_grouped(q, key_heads), plan)
    k, v = tiling.with_halo(k, plan), tiling.with_halo(v, plan)

    def step(found, origin):
        scores = _scores(plan, scale, origin, q, k, halo_bias)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum(
            "bpchrqk,bpckhv->bpchrqv", weights.astype(v.dtype), tiling.take(v, origin, plan),
            preferred_element_type=wide,
        )  # fmt: skip
        tiles = (out / total).astype(dtype), (top + jnp.log(total))[..., 0]
        return tuple(
            tiling.put(x, origin, plan.queries, jnp.moveaxis(t, 5, 3)) for x, t in zip(found, tiles, strict=True)
        ), None

    empty = jnp.zeros((*q.shape[:-1], v.shape[-1]), dtype), jnp.zeros(q.shape[:-1], wide)
    out, lse = (tiling.from_groups(x, plan) for x in jax.lax.scan(step, empty, plans.origins(plan))[0])
    heads = out.shape[-3] * out.shape[-2]
    return out.reshape(*out.shape[:-3], heads, out.shape[-1]), lse.reshape(*lse.shape[:-2], heads)


def _attend_forward(plan, scale, dtype, q, k, v, bias):
    out, lse = _attend(plan, scale, dtype, q, k, v, bias)
    return (out, lse), (q, k, v, bias, out, lse)


def _attend_backward(plan, scale, dtype, kept, cotangents):
    q, k, v, bias, out, lse = kept
    d_out, d_lse = cotangents
    wide, key_heads = jnp.promote_types(q.dtype, jnp.float32), k.shape[-2]
    halo_bias, to_bias = jax.vjp(lambda bias: _halo_bias(bias, plan, key_heads, wide), bias)
    # the gradient of a score is weight * (what its value would add - what the output holds already)
    held = (d_out.astype(wide) * out.astype(wide)).sum(-1) - d_lse
    lse, held = (x.reshape(*x.shape[:-1], key_heads, -1) for x in (lse, held))
    # where there is no query there is no weight
    lse, held = tiling.to_groups(lse, plan, fill=jnp.inf), tiling.to_groups(held, plan)
    queries, d_out = (tiling.to_groups(_grouped(x, key_heads), plan) for x in (q, d_out.astype(v.dtype)))
    keys, values = tiling.with_halo(k, plan), tiling.with_halo(v, plan)

    def step(gradients, origin):
        d_queries, d_keys, d_values, d_bias = gradients
        q, d, base, mean = (tiling.take(x, origin, plan.queries) for x in (queries, d_out, lse, held))
        base, mean = (jnp.moveaxis(x, 3, 5)[..., None] for x in (base, mean))
        k, v = (tiling.take(x, origin, plan) for x in (keys, values))
        weights = jnp.exp(_scores(plan, scale, origin, queries, keys, halo_bias) - base)
        d_weights = jnp.einsum("bpcqhrv,bpckhv->bpchrqk", d, v, preferred_element_type=wide)
        d_scores = weights * (d_weights - mean)
        d_bias = None if bias is None else d_bias + d_scores.sum((0, 1, 2))
        weights, d_scores = weights.astype(v.dtype), d_scores.astype(q.dtype)
        d_q = jnp.einsum("bpchrqk,bpckhd->bpcqhrd", d_scores, k, preferred_element_type=wide) * scale
        d_k = jnp.einsum("bpchrqk,bpcqhrd->bpckhd", d_scores, q, preferred_element_type=wide) * scale
        d_v = jnp.einsum("bpchrqk,bpcqhrv->bpckhv", weights, d, preferred_element_type=wide)
        return (
            tiling.put(d_queries, origin, plan.queries, d_q.astype(q.dtype)),
            tiling.add(d_keys, origin, plan, d_k), tiling.add(d_values, origin, plan, d_v), d_bias,
        ), None  # fmt: skip

    zeros = [jnp.zeros_like(queries), jnp.zeros(keys.shape, wide), jnp.zeros(values.shape, wide)]
    zeros.append(None if bias is None else jnp.zeros_like(halo_bias))
    (d_q, d_k, d_v, d_bias), _ = jax.lax.scan(step, tuple(zeros), plans.origins(plan))
    d_q = tiling.from_groups(d_q, plan).reshape(q.shape)
    d_k, d_v = (tiling.without_halo(x, plan).astype(like.dtype) for x, like in ((d_k, k), (d_v, v)))
    return d_q, d_k, d_v, to_bias(d_bias)[0]


_attend.defvjp(_attend_forward, _attend_backward)
attend = jax.jit(_attend, static_argnums=(0, 1, 2))  # a model's blocks of one shape are traced once


def _scores(plan, scale, origin, q, k, halo_bias):
    """[B, groups, C, key_heads, heads of each, Q, K], -inf where a key does not take part."""
    q, k = tiling.take(q, origin, plan.queries), tiling.take(k, origin, plan)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bpcqhrd,bpckhd->bpchrqk", q, k, preferred_element_type=wide) * scale
    if halo_bias is not None:
        scores = scores + halo_bias
    return jnp.where(tiling.takes_part(origin, plan)[None, :, :, None, None], scores, -jnp.inf)


def _grouped(x, key_heads):
    """[..., heads, d] -> [..., key_heads, heads that each serves, d]."""
    return x.reshape(*x.shape[:-2], key_heads, -1, x.shape[-1])


def _halo_bias(bias, plan, key_heads, wide):
    """[key_heads, heads that each serves, Q, K], or None."""
    if bias is None:
        return None
    bias = tiling.halo_bias(bias.astype(wide), plan)
    return bias.reshape(key_heads, -1, *bias.shape[1:])


def attend_additional(q, k, v, bias, scale):
    """Every query attends to T additional keys: (output, log-sum-exp), in at least float32.

    Args:
      q: [B, *sizes, heads, head_dim].
      k, v: [B, T, key_heads, head_dim or value_dim].
      bias: what broadcasts to [B, *sizes, heads, T], or None.
      scale: a number.
    """
    B, *sizes, heads, _ = q.shape
    wide, key_heads, T = jnp.promote_types(q.dtype, jnp.float32), k.shape[2], k.shape[1]
    chunks = max(1, T // max(q.shape[-1], v.shape[-1]))  # a chunk's scores are no more than the map's elements
    queries = _chunks(_grouped(q, key_heads), len(sizes), chunks)
    fixed, own = None, None
    if bias is not None:
        bias = bias.reshape(*(1,) * (q.ndim - bias.ndim), *bias.shape).astype(wide)
        bias = jnp.broadcast_to(bias, (*bias.shape[:-2], heads, T))
        bias = _grouped(bias, key_heads)
        if set(bias.shape[1:-3]) == {1}:
            fixed = bias.reshape(-1, 1, *bias.shape[-3:])
        else:  # each query has its own
            own = _chunks(jnp.broadcast_to(bias, (len(bias), *sizes, *bias.shape[-3:])), len(sizes), chunks)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(queries, bias):
        scores = jnp.einsum("bqhrd,bthd->bqhrt", queries, k, preferred_element_type=wide) * scale
        scores = scores if bias is None else scores + bias
        lse = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
        return jnp.einsum("bqhrt,bthv->bqhrv", weights, v, preferred_element_type=wide), lse

    found = jax.lax.map(lambda c: chunk(c[0], fixed if own is None else c[1]), (queries, own))
    joined = (jnp.moveaxis(x, 0, 1).reshape(B, -1, heads, *x.shape[5:]) for x in found)
    N = q.size // (B * heads * q.shape[-1])
    return tuple(x[:, :N].reshape(B, *sizes, *x.shape[2:]) for x in joined)


def _chunks(x, axes, chunks):
    """[B, *sizes, ...] -> [chunks, B, tokens, ...], the last chunk filled up with zeros."""
    x = x.reshape(x.shape[0], -1, *x.shape[axes + 1 :])
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunks), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
