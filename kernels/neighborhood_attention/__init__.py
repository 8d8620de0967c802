"""Neighborhood attention: every query sees the window around it, in one, two or three dimensions."""

import functools
import math
import numbers

from vision_jax.kernels import dispatch
from vision_jax.kernels.neighborhood_attention import halves, query_tiles, rectangles, xla
from vision_jax.kernels.neighborhood_attention.fast_path import from_groups, to_groups

from vision_jax.errors import InputError, unknown
from vision_jax.mesh import local_shape, over_mesh, split_axes

BORDERS = ("shift", "mask", "zero")


def neighborhood_attention(
    q, k, v, *, kernel_size, stride=1, dilation=1, is_causal=False, border="shift", bias=None, scale=None,
    additional_keys=None, additional_values=None, additional_bias=None, return_lse=False, implementation=None,
):  # fmt: skip
    """Softmax attention of every query to the window around it (NAT: arXiv:2204.07143; DiNAT: arXiv:2209.15001).

    Options are one value for all axes, or a tuple of one an axis. Differentiable in every array. Memory grows with the
    number of tokens, not with that times the window. The result is the same from every implementation, and from run to
    run on one device.

    Args:
      q: queries [B, *sizes, heads, head_dim], of one, two or three axes.
      k: keys [B, *sizes, key_heads, head_dim]; key_heads divides heads (each serves several query heads).
      v: values [B, *sizes, key_heads, value_dim].
      kernel_size: keys of a window along an axis, odd.
      stride: this many neighbours share the window of the middle one; at most kernel_size (arXiv:2504.16922).
      dilation: distance of a window's keys.
      is_causal: whether keys behind the query along this axis are not seen; a causal window ends at the query.
      border: what a window does that would leave the map: "shift" moves it inward, so that it keeps its size (NATTEN);
        "mask" leaves out the keys outside (TransNeXt: arXiv:2311.17132); "zero" lets them take part, with keys and
        values of zero (an unfolded, zero-padded map).
      bias: added to the scaled scores, [heads, 2 * kernel_size - 1, ...] with one axis for each of the map: the key's
        position less the query's, over the dilation, from -(kernel_size - 1) on.
      scale: factor of the scores, a number; None is head_dim ** -0.5.
      additional_keys, additional_values: [B, T, key_heads, head_dim or value_dim], seen by all queries, under the same
        softmax.
      additional_bias: added to their scaled scores, [heads, T], or what broadcasts to [B, *sizes, heads, T].
      return_lse: return the log-sum-exp of the scores too.
      implementation: "xla", "tpu" or "gpu"; None is the TPU's kernel there, where it takes the call, else XLA
        (`vision_jax.kernels.explain` says which and why). The kernels for sm_90 GPUs have not run on one yet: by name.

    Returns:
      [B, *sizes, heads, value_dim] in v's dtype; or (that, [B, *sizes, heads] in at least float32). Softmax is in at
      least float32.

    Raises:
      InputError: shapes or sizes that do not fit together; an implementation that cannot run.
    """
    _check_operands(q, k, v)
    options = _options(q.shape[1:-2], kernel_size, stride, dilation, is_causal, border)
    _check_bias(bias, q.shape[-2], options["kernel_size"])
    _check_additional(q, k, v, additional_keys, additional_values, additional_bias)
    scale = _scale(scale, q)
    sizes, names = q.shape[1:-2], ("batch", *(None,) * (q.ndim - 3), "heads", None)
    axes = split_axes({"batch": [q.shape[0]], "heads": [q.shape[-2], k.shape[-2]]})
    local = local_shape(q.shape, names, axes)
    call, additional = (q, k, v, local, options, bias is not None), additional_keys is not None
    refusals = {
        "tpu": functools.partial(query_tiles.refusal, *call),
        "gpu": functools.partial(rectangles.refusal, *call, additional),
    }
    chosen = dispatch.choose("neighborhood_attention", local, implementation, refusals)
    if chosen == "xla":
        out, lse = xla.neighborhood_attention(
            q, k, v, **options, bias=bias, scale=scale, additional_keys=additional_keys,
            additional_values=additional_values, additional_bias=additional_bias,
        )  # fmt: skip
        return (out, lse) if return_lse else out
    # Kernels are imported where one runs: Pallas takes its time, and not every build of JAX has Mosaic GPU.
    if chosen == "gpu":
        from vision_jax.kernels.neighborhood_attention import gpu

        with_lse, layout = True, rectangles.Rectangles.of(local, options)

        def kernel(*operands):
            out, lse = gpu.neighborhood_attention(*operands, scale, layout)
            return out, lse[..., None]

    else:
        from vision_jax.kernels.neighborhood_attention import tpu

        with_lse = bool(return_lse or additional)
        # additional keys are joined to what the kernel gives, by XLA: there are few of them
        layout = query_tiles.QueryTiles.of(local, options, returns_lse=with_lse, wide=additional)
        kernel = functools.partial(tpu.neighborhood_attention, scale=scale, tiles=layout)
    # A dilation group is a map of its own: the groups of an image join its batch.
    queries, keys, values = (to_groups(x, options["dilation"], layout.AXES) for x in (q, k, v))
    of_map, of_bias = (None,) * layout.AXES, ("heads", *(None,) * layout.AXES)
    if bias is not None:
        bias = bias.reshape(len(bias), *(1,) * (layout.AXES - len(sizes)), *bias.shape[1:])
    names = ("batch", *of_map, "heads", None)
    of_results = [names, names] if with_lse else names
    found = over_mesh(kernel, (queries, keys, values, bias), (names, names, names, of_bias), of_results, axes)
    if not with_lse:
        return from_groups(found, options["dilation"], sizes)
    out, lse = (from_groups(x, options["dilation"], sizes) for x in found)
    lse = lse[..., 0]
    if additional:
        out, lse = xla.join_additional(out, lse, q, additional_keys, additional_values, additional_bias, scale)
    return (out, lse) if return_lse else out


def neighborhood_scores(
    q, k, *, kernel_size, stride=1, dilation=1, is_causal=False, border="shift", bias=None, scale=None
):
    """The first half of `neighborhood_attention`: scaled scores and bias, for a softmax of one's own.

    Args:
      q, k, kernel_size, stride, dilation, is_causal, border, bias, scale: as there.

    Returns:
      [B, *sizes, heads, keys of a window, row by row], at least float32; -inf for keys that do not take part.

    Raises:
      InputError: shapes or sizes that do not fit together.
    """
    _check_operands(q, k, k)
    options = _options(q.shape[1:-2], kernel_size, stride, dilation, is_causal, border)
    _check_bias(bias, q.shape[-2], options["kernel_size"])
    return halves.neighborhood_scores(q, k, **options, bias=bias, scale=_scale(scale, q))


def neighborhood_aggregate(weights, v, *, kernel_size, stride=1, dilation=1, is_causal=False, border="shift"):
    """The second half of `neighborhood_attention`: the values of each query's window, weighted.

    Args:
      weights: [B, *sizes, heads, keys of a window], as `neighborhood_scores` orders them; not read where a key does
        not take part.
      v: values [B, *sizes, key_heads, value_dim].
      kernel_size, stride, dilation, is_causal, border: as in `neighborhood_attention`.

    Returns:
      [B, *sizes, heads, value_dim] in v's dtype.

    Raises:
      InputError: shapes or sizes that do not fit together.
    """
    _check_operands(v, v, v)
    options = _options(v.shape[1:-2], kernel_size, stride, dilation, is_causal, border)
    window = math.prod(options["kernel_size"])
    if weights.ndim != v.ndim or weights.shape[:-2] != v.shape[:-2] or weights.shape[-1] != window:
        wanted = (*v.shape[:-2], "heads", window)
        raise InputError(f"weights of shape {weights.shape}: {wanted} for v of shape {v.shape}")
    _check_heads(weights.shape[-2], v.shape[-2])
    return halves.neighborhood_aggregate(weights, v, **options)


def _check_operands(q, k, v):
    if not (4 <= q.ndim <= 6 and q.ndim == k.ndim == v.ndim):
        raise InputError(
            f"q, k, v of shapes {q.shape}, {k.shape}, {v.shape}: [B, *sizes, heads, head_dim] each, one to three axes"
        )
    if k.shape[:-2] != q.shape[:-2] or v.shape[:-1] != k.shape[:-1] or k.shape[-1] != q.shape[-1]:
        raise InputError(f"k {k.shape} and v {v.shape} do not fit q {q.shape}: one map, one head_dim for q and k")
    _check_heads(q.shape[-2], k.shape[-2])


def _check_heads(heads, key_heads):
    if heads % key_heads:
        raise InputError(f"k and v have {key_heads} heads, which do not divide the {heads} of q")


def _options(sizes, kernel_size, stride, dilation, is_causal, border):
    """The options as tuples of one an axis."""
    n = len(sizes)
    kernel_size, stride, dilation = (
        _per_axis(what, value, n, "an int of at least 1", lambda x: type(x) is int and x >= 1)
        for what, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    is_causal = _per_axis("is_causal", is_causal, n, "True or False", lambda x: type(x) is bool)
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    for axis, (size, k, s, d) in enumerate(zip(sizes, kernel_size, stride, dilation, strict=True)):
        if k % 2 == 0:
            raise InputError(f"kernel_size={k} of axis {axis} is even: a window has a middle, take {k - 1} or {k + 1}")
        if s > k:
            raise InputError(f"stride={s} of axis {axis} is larger than kernel_size={k}: some queries had no window")
        if border == "shift" and k * d > size:
            given = f"kernel_size * dilation = {k * d} is larger than the {size} positions of axis {axis}"
            raise InputError(f"{given}: pad the map, take less, or another border")
        if d > size:
            raise InputError(f"dilation={d} is larger than the {size} positions of axis {axis}")
    return dict(kernel_size=kernel_size, stride=stride, dilation=dilation, is_causal=is_causal, border=border)


def _per_axis(what, value, n, said, fits):
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n
    if len(values) != n or not all(map(fits, values)):
        raise InputError(f"{what}={value!r}: {said}, or a tuple of {n}, one for each axis")
    return values


def _check_bias(bias, heads, kernel_size):
    wanted = (heads, *(2 * k - 1 for k in kernel_size))
    if bias is not None and bias.shape != wanted:
        raise InputError(f"bias of shape {bias.shape}: {wanted}, a number for each head and relative position")


def _check_additional(q, k, v, keys, values, bias):
    if (keys is None) != (values is None):
        raise InputError("additional_keys and additional_values: both or neither")
    if keys is None:
        if bias is not None:
            raise InputError("additional_bias is for additional_keys, of which there are none")
        return
    T = keys.shape[1] if keys.ndim == 4 else 0
    wanted = (q.shape[0], T or "T", *k.shape[-2:]), (q.shape[0], T or "T", *v.shape[-2:])
    if (keys.shape, values.shape) != wanted or not T:
        raise InputError(
            f"additional_keys, additional_values of shapes {keys.shape}, {values.shape}: {wanted[0]}, {wanted[1]}"
        )
    wanted = (*q.shape[:-1], T)
    if bias is not None and (bias.ndim < 2 or not _broadcasts(bias.shape, wanted)):
        raise InputError(f"additional_bias of shape {bias.shape}: {wanted[-2:]}, or what broadcasts to {wanted}")


def _broadcasts(shape, wanted):
    return len(shape) <= len(wanted) and all(a in (1, b) for a, b in zip(shape[::-1], wanted[::-1], strict=False))


def _scale(scale, q):
    if scale is None:
        return q.shape[-1] ** -0.5
    if not isinstance(scale, numbers.Real):
        raise InputError(f"scale={scale!r}: a number; for one a head, multiply q by it and pass scale=1.0")
    return float(scale)
