"""Neighborhood attention on sm_90 GPUs: Pallas Mosaic GPU kernels that read tiles and rectangles from the map.

Forward, a block takes 64 queries and the rectangle of keys that their windows reach, with a softmax that is corrected
from chunk to chunk (Dao et al., 2022: arXiv:2205.14135, algorithm 1). Backward, the gradient of the queries runs over
the same rectangles and that of keys and values over the queries that see 64 keys, both with probabilities computed
again from the log-sum-exp. No block adds to what another one writes, so that results are the same from run to run.
Residuals are the operands, the result and the log-sum-exp.

A map is padded where tiles do not divide it, or a rectangle is larger: a copy of it, as is the sorting of positions
into dilation groups. Written against the interpreter and the lowering for an H200, before any run on one.
"""

import functools

import jax
import jax.numpy as jnp
from vision_jax.kernels.hopper import ROWS
from vision_jax.kernels.mosaic_gpu import LOG2E, columns, laid, product, rows
from vision_jax.kernels.neighborhood_attention.gpu_bias import bias_gradient
from vision_jax.kernels.neighborhood_attention.gpu_blocks import Update, attend, scores_gradient
from vision_jax.kernels.packed_heads import MASKED


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def neighborhood_attention(q, k, v, bias, scale, layout):
    """(output, log-sum-exp [B, H, W, heads]) of q, k, v [B, H, W, heads, head_dim] and bias [heads, ...] or None.

    Args:
      q, k, v: bfloat16.
      bias: [heads, 2 * kernel_size - 1 of the rows, of the columns].
      scale: a number.
      layout: `rectangles.Rectangles`.
    """
    cut = layout.by_queries
    (out,), (lse,) = attend(
        cut, layout.heads, _forward_update(layout.heads.head_dim), [_padded(cut, q)],
        [_padded(cut, k), _padded(cut, v)], bias=bias, scale=scale, products=2, name="neighborhood_attention",
    )  # fmt: skip
    height, width = layout.size
    return out[:, :height, :width], _to_map(cut, lse)[:, :, :height, :width].transpose(0, 2, 3, 1) / LOG2E


def _forward(q, k, v, bias, scale, layout):
    out, lse = neighborhood_attention(q, k, v, bias, scale, layout)
    return (out, lse), (q, k, v, bias, out, lse)


def _backward(scale, layout, residuals, gradients):
    q, k, v, bias, out, lse = residuals
    d_out, d_lse = gradients
    # the gradient of a score is weight * (what its value would add - what the output holds already)
    held = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1) - d_lse
    maps = [_padded(layout.by_queries, x) for x in (q, k, v, d_out)]
    lse, held = (_padded(layout.by_queries, x.transpose(0, 3, 1, 2), 2) for x in (lse * LOG2E, held))
    q, k, v, d_out = maps
    heads, size = layout.heads, layout.size
    call = dict(bias=bias, scale=scale)
    numbers = [_to_tiles(layout.by_queries, x) for x in (lse, held)]
    (dq,), _ = attend(
        layout.by_queries, heads, _queries_update(heads.head_dim, scale), [q, d_out], [k, v], numbers, products=3,
        name="neighborhood_attention_backward_queries", **call,
    )  # fmt: skip
    (dk, dv), _ = attend(
        layout.by_keys, heads, _keys_update(heads.head_dim, scale), [k, v], [q, d_out], (),
        [x.reshape(*x.shape[:2], -1) for x in (lse, held)], products=4, name="neighborhood_attention_backward_keys",
        **call,
    )  # fmt: skip
    d_bias = None if bias is None else bias_gradient(layout, maps, numbers, **call)
    return *(x[:, : size[0], : size[1]] for x in (dq, dk, dv)), d_bias


neighborhood_attention.defvjp(_forward, _backward)


def _padded(cut, x, axis=1):
    """x with rows and columns of zeros after those of the map, which begin at `axis`."""
    more = [n - m for n, m in zip(cut.padded, x.shape[axis:], strict=False)]
    widths = [(0, 0)] * x.ndim
    widths[axis : axis + 2] = [(0, n) for n in more]
    return jnp.pad(x, widths) if any(more) else x


def _to_map(cut, x):
    """[B, heads, tiles, 64] -> [B, heads, rows and columns of whole tiles]."""
    (across_rows, across), (h, w) = cut.tiles, cut.tile
    x = x.reshape(*x.shape[:2], across_rows, across, h, w)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(*x.shape[:2], across_rows * h, across * w)


def _to_tiles(cut, x):
    """The inverse, of a padded map."""
    (across_rows, across), (h, w) = cut.tiles, cut.tile
    x = x[:, :, : across_rows * h, : across * w].reshape(*x.shape[:2], across_rows, h, across, w)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(*x.shape[:2], -1, ROWS)


def _sum_of(head_dim):
    return laid(jnp.zeros((ROWS, head_dim), jnp.float32))


def _forward_update(head_dim):
    def start():
        one = laid(jnp.zeros((ROWS,), jnp.float32), 1)
        return _sum_of(head_dim), one + MASKED, one

    def step(scores, own, others, sums):
        out, top, total = sums
        higher = jnp.maximum(top, jnp.max(scores, 1))
        p = jnp.exp2(scores - rows(higher, scores.shape[1]))
        kept = jnp.exp2(top - higher)
        out = out * rows(kept, head_dim) + product(p.astype(jnp.bfloat16), others[0][1])
        return out, higher, total * kept + jnp.sum(p, 1)

    def finish(sums):
        out, top, total = sums
        return [out * rows(1 / total, head_dim)], [top + jnp.log(total) * LOG2E]

    return Update(start, step, finish, (1, 1))


def _queries_update(head_dim, scale):
    def step(scores, own, others, sums):
        (_, d_out), (lse, held) = own
        (k, v), _ = others
        d_scores = scores_gradient(scores, lse, held, d_out, v)
        return sums + product(d_scores.astype(jnp.bfloat16), k)

    return Update(lambda: _sum_of(head_dim), step, lambda dq: ([dq * scale], []), (1, 0))


def _keys_update(head_dim, scale):
    def step(scores, own, others, sums):
        dk, dv = sums
        (_, v), _ = own
        (q, d_out), (lse, held) = others
        p = jnp.exp2(scores - columns(lse, ROWS))
        d_scores = p * (product(v, d_out, (False, True)) - columns(held, ROWS))
        dv = dv + product(p.astype(jnp.bfloat16), d_out)
        return dk + product(d_scores.astype(jnp.bfloat16), q), dv

    def finish(sums):
        return [sums[0] * scale, sums[1]], []

    return Update(lambda: (_sum_of(head_dim),) * 2, step, finish, (2, 0))
