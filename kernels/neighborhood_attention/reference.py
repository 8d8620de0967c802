"""Neighborhood attention as it is defined: numpy loops over queries and keys. Slow; what others must equal."""

import itertools

import numpy as np


def neighborhood_attention(
    q, k, v, *, kernel_size, stride, dilation, is_causal, border, bias=None, scale=None, additional_keys=None,
    additional_values=None, additional_bias=None,
):  # fmt: skip
    """The definition: (output, log-sum-exp). Options are tuples, one element an axis; float64 inside.

    softmax(q k^T scale + bias) v over the keys of the query's window and the additional keys (NAT: arXiv:2204.07143,
    equations 2 to 4, where the window is the query's nearest neighbours; DiNAT: arXiv:2209.15001, section 3).
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, is_causal=is_causal, border=border)
    scores = neighborhood_scores(q, k, **options, bias=bias, scale=scale)
    own, K = scores, scores.shape[-1]
    if additional_keys is not None:
        more = np.asarray(additional_keys, np.float64).repeat(q.shape[-2] // k.shape[-2], axis=2)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        more = np.einsum("b...hd,bthd->b...ht", q, more) * scale
        own = np.concatenate([scores, more + (0 if additional_bias is None else additional_bias)], axis=-1)
    top = own.max(-1, keepdims=True)
    weights = np.exp(own - top)
    total = weights.sum(-1, keepdims=True)
    out = neighborhood_aggregate(weights[..., :K] / total, v, **options)
    if additional_keys is not None:
        more = np.asarray(additional_values, np.float64).repeat(q.shape[-2] // k.shape[-2], axis=2)
        out += np.einsum("b...ht,bthv->b...hv", weights[..., K:] / total, more)
    return out, (top + np.log(total))[..., 0]


def neighborhood_scores(q, k, *, kernel_size, stride, dilation, is_causal, border, bias=None, scale=None):
    """The first half: [B, *sizes, heads, keys of a window]; -inf where a key does not take part."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k = k.repeat(q.shape[-2] // k.shape[-2], axis=-2)
    scores = np.full((*q.shape[:-1], np.prod(kernel_size)), -np.inf)
    for query, slot, key, relative in _pairs(q.shape[1:-2], kernel_size, stride, dilation, is_causal, border):
        one = 0.0 if key is None else np.einsum("bhd,bhd->bh", q[(slice(None), *query)], k[(slice(None), *key)])
        if bias is not None:
            place = tuple(r + size - 1 for r, size in zip(relative, kernel_size, strict=True))
            one = one * scale + np.asarray(bias, np.float64)[(slice(None), *place)]
        else:
            one = one * scale
        scores[(slice(None), *query, slice(None), slot)] = one
    return scores


def neighborhood_aggregate(weights, v, *, kernel_size, stride, dilation, is_causal, border):
    """The second half: what weights [B, *sizes, heads, keys of a window] make of the values."""
    weights, v = np.asarray(weights, np.float64), np.asarray(v, np.float64)
    v = v.repeat(weights.shape[-2] // v.shape[-2], axis=-2)
    out = np.zeros((*weights.shape[:-1], v.shape[-1]))
    for query, slot, key, _ in _pairs(v.shape[1:-2], kernel_size, stride, dilation, is_causal, border):
        if key is not None:
            one = weights[(slice(None), *query, slice(None), slot)]
            out[(slice(None), *query)] += one[..., None] * v[(slice(None), *key)]
    return out


def _pairs(sizes, kernel_size, stride, dilation, is_causal, border):
    """Yields (query, slot in the window, key or None for a zero, relative position) of all that take part."""
    axes = [
        [_window(i, *options, border) for i in range(options[0])]
        for options in zip(sizes, kernel_size, stride, dilation, is_causal, strict=True)
    ]
    for query in itertools.product(*map(range, sizes)):
        window = itertools.product(*(axis[i] for axis, i in zip(axes, query, strict=True)))
        for slot, keys in enumerate(window):
            if all(takes_part for _, takes_part, _ in keys):
                inside = all(key is not None for key, _, _ in keys)
                yield query, slot, tuple(key for key, _, _ in keys) if inside else None, [key[2] for key in keys]


def _window(i, size, kernel_size, stride, dilation, is_causal, border):
    """Along one axis, for each key of the window: (position or None outside, takes part, relative position).

    A query sees the positions that lie a multiple of the dilation away: within these, its group, `stride` neighbours
    share one window, that of their leader.
    """
    group = list(range(i % dilation, size, dilation))
    query = group.index(i)
    leader = query - query % stride + (stride - 1 if is_causal else stride // 2)
    leader = min(leader, len(group) - 1)
    first = leader - kernel_size + 1 if is_causal else leader - kernel_size // 2
    if border == "shift" and not is_causal:  # the nearest window of this size inside the map
        first = max(0, min(first, len(group) - kernel_size))
    window = []
    for key in range(first, first + kernel_size):
        inside, future = 0 <= key < len(group), is_causal and key > query
        window.append((group[key] if inside else None, (inside or border == "zero") and not future, key - query))
    return window
