"""Windowed attention: partition, cyclic shift, its mask and the bias inside the operator."""

import functools

import jax.numpy as jnp
from vision_jax.kernels import dispatch
from vision_jax.kernels.packed_heads import Heads
from vision_jax.kernels.window_attention import bands, runs, xla

from vision_jax.errors import InputError, unknown
from vision_jax.mesh import local_shape, over_mesh, split_axes

BORDERS = ("mask", "zero")
MAP = ("batch", None, None, "heads", None)  # what splits the operands' dimensions on a mesh


def window_attention(
    q, k, v, *, window_size, shift=0, dilation=1, halo=0, border="mask", bias=None, query_bias=None, key_mask=None,
    key_windows=None, scale=None, return_lse=False, implementation=None,
):  # fmt: skip
    """Softmax attention inside the windows of a map (Swin: arXiv:2103.14030, equation 4 and figure 4).

    The map is shifted cyclically by `-shift`, cut into windows, and put back; tokens that only the wrap brought into
    one window do not see each other. Differentiable in q, k, v, bias, query_bias and scale. The result is the same from
    every implementation, and from run to run on one device.

    A window has Nq = window tokens as queries and Nk as keys: as many, or more with a halo or with routed windows.

    Args:
      q: queries [B, H, W, heads, head_dim]; [B, *window_size, heads, head_dim] are shared by all windows (GCViT:
        arXiv:2206.09959); with a halo the map may be coarser by a stride that divides the window (HaloNet).
      k: keys [B, H, W, key_heads, head_dim]; key_heads divides heads (each serves several query heads).
      v: values [B, H, W, key_heads, value_dim].
      window_size: tokens of a window along each axis, an int or (height, width). Times the dilation it divides H and W:
        padding is the caller's, before the projection, because padded tokens take part. Stripes are windows too.
      shift: cyclic shift in tokens, an int or one for each axis; below window_size * dilation.
      dilation: distance of a window's tokens, an int or one for each axis; H / window_size is MaxViT's grid.
      halo: tokens around a window that are keys too, an int or one for each axis (HaloNet: arXiv:2103.12731).
      border: keys of a halo beyond the map are dropped ("mask"), or take part as zeros ("zero", as HaloNet pads).
      bias: added to the scaled scores, [heads, Nq, Nk], tokens row by row; or [windows, heads, Nq, Nk].
      query_bias: two tables of relative positions, [rows, key rows, head_dim] and [columns, key columns, head_dim] of a
        window: q . first[y, key y] + q . second[x, key x] is added to the scores, unscaled (HaloNet; SAM).
      key_mask: bool [B, H, W], False for keys that nobody sees. A query that sees none gives 0, with gradient 0.
      key_windows: int [B, windows, n]: for each window the windows whose tokens are its keys (BiFormer:
        arXiv:2303.08810), in this order.
      scale: factor of the scores, a number or [heads]; None is head_dim ** -0.5.
      return_lse: return the log-sum-exp of the scores too.
      implementation: "xla", "tpu" or "gpu"; None is the TPU's kernel there, where it takes the call, else XLA
        (`vision_jax.kernels.explain` says which and why). The kernel for sm_90 GPUs has not run on one yet: by name.

    Returns:
      [B, H, W, heads, value_dim] in v's dtype, of q's map where that is coarser; or (that, the same without its last
      axis, in at least float32). Softmax is in at least float32.

    Raises:
      InputError: shapes or sizes that do not fit together; an implementation that cannot run.
    """
    window_size, shift = _pair("window_size", window_size, 1), _pair("shift", shift, 0)
    dilation, halo = _pair("dilation", dilation, 1), _pair("halo", halo, 0)
    _check(q, k, v, window_size, shift, dilation, halo, border, bias, query_bias, key_mask, key_windows, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    axes = split_axes({"batch": [k.shape[0]], "heads": [q.shape[3], k.shape[3]]})
    batch, H, W, heads, head_dim = local_shape((*k.shape[:3], *q.shape[3:]), MAP, axes)
    call = batch, (H, W), window_size, shift, dilation
    of_tpu, of_gpu = bands.Bands(*call, Heads(heads, head_dim)), runs.Runs(*call, heads, head_dim)
    other = {"halo": any(halo), "query_bias": query_bias is not None, "key_windows": key_windows is not None}
    other = [name for name, used in other.items() if used] + ["shared queries"] * (q.shape[:3] != k.shape[:3])
    refusals = {
        "tpu": functools.partial(bands.refusal, of_tpu, q, k, v, return_lse=return_lse, other=other),
        "gpu": functools.partial(runs.refusal, of_gpu, q, k, v, bias, return_lse=return_lse, other=other),
    }
    chosen = dispatch.choose("window_attention", (batch, *q.shape[1:3], heads, head_dim), implementation, refusals)
    if chosen == "xla":
        out, lse = xla.window_attention(
            q, k, v, window_size=window_size, shift=shift, dilation=dilation, halo=halo, border=border, bias=bias,
            query_bias=query_bias, key_mask=key_mask, key_windows=key_windows, scale=scale,
        )  # fmt: skip
        return (out, lse) if return_lse else out
    # Kernels are imported where one runs: Pallas takes its time, and not every build of JAX has Mosaic GPU.
    if chosen == "gpu":
        from vision_jax.kernels.window_attention import gpu

        kernel = functools.partial(gpu.window_attention, runs=of_gpu)
    else:
        from vision_jax.kernels.window_attention import tpu

        kernel = functools.partial(tpu.window_attention, bands=of_tpu)
    bias_names = ("heads", None, None) if bias is None or bias.ndim == 3 else (None, "heads", None, None)
    return over_mesh(
        kernel,
        (q, k, v, bias, key_mask, jnp.broadcast_to(jnp.asarray(scale, jnp.float32), q.shape[3:4])),
        (MAP, MAP, MAP, bias_names, MAP[:3], ("heads",)),
        MAP,
        axes,
    )


def _pair(what, value, least):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise InputError(f"{what}={value!r}: an int of at least {least}, or a pair of them")
    return pair


def _check(q, k, v, window_size, shift, dilation, halo, border, bias, query_bias, key_mask, key_windows, scale):
    if q.ndim != 5 or k.ndim != 5 or v.ndim != 5:
        raise InputError(f"q, k, v of shapes {q.shape}, {k.shape}, {v.shape}: [B, H, W, heads, head_dim] each")
    B, H, W, key_heads, head_dim = k.shape
    heads = q.shape[3]
    query_window = window_size
    if (
        any(halo)
        and q.shape[1:3] != (H, W)
        and all(0 < n <= m and m % n == 0 for n, m in zip(q.shape[1:3], (H, W), strict=True))
    ):
        strides = H // q.shape[1], W // q.shape[2]
        query_window = tuple(w // s for w, s in zip(window_size, strides, strict=True))
        if any(w % s for w, s in zip(window_size, strides, strict=True)):
            raise InputError(f"q's map is coarser by {strides}, which does not divide window_size={window_size}")
    elif q.shape[1:3] != (H, W) and (any(halo) or q.shape[1:3] != window_size):
        raise InputError(
            f"k {k.shape} does not fit q {q.shape}: one map, or queries of one window {window_size} for all"
        )
    if q.shape[0] != B or v.shape[:4] != k.shape[:4] or q.shape[4] != head_dim:
        raise InputError(f"k {k.shape} and v {v.shape} do not fit q {q.shape}: one batch, one head_dim for q and k")
    if heads % key_heads:
        raise InputError(f"k and v have {key_heads} heads, which do not divide the {heads} of q")
    for axis, n, w, s, d in zip("HW", (H, W), window_size, shift, dilation, strict=True):
        if n % (w * d):
            near = -(-n // (w * d)) * w * d
            given = f"{axis}={n} is not a multiple of window_size * dilation = {w * d}"
            raise InputError(f"{given}: pad the map to {near}, before the projection")
        if s >= max(w * d, 2):
            raise InputError(f"shift={s} along {axis} must be below window_size * dilation = {w * d}")
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    if any(halo) and (any(shift) or dilation != (1, 1) or key_windows is not None):
        raise InputError(f"halo={halo} goes without shift, dilation and key_windows")
    if key_windows is not None and (any(shift) or query_bias is not None):
        raise InputError("key_windows goes without shift and query_bias")
    windows = H * W // (window_size[0] * window_size[1])
    key_window = tuple(w + 2 * h for w, h in zip(window_size, halo, strict=True))
    queries, keys = query_window[0] * query_window[1], key_window[0] * key_window[1]
    if key_windows is not None:
        if key_windows.ndim != 3 or key_windows.shape[:2] != (B, windows) or key_windows.dtype.kind != "i":
            raise InputError(f"key_windows of shape {key_windows.shape}, {key_windows.dtype}: ints [{B}, {windows}, n]")
        keys *= key_windows.shape[2]
    if bias is not None and bias.shape not in ((heads, queries, keys), (windows, heads, queries, keys)):
        raise InputError(f"bias of shape {bias.shape}: {(heads, queries, keys)} or {(windows, heads, queries, keys)}")
    if query_bias is not None:
        wanted = [(a, b, head_dim) for a, b in zip(query_window, key_window, strict=True)]
        if len(query_bias) != 2 or [table.shape for table in query_bias] != wanted:
            given = [getattr(table, "shape", table) for table in query_bias]
            raise InputError(f"query_bias of shapes {given}: two tables, {wanted[0]} and {wanted[1]}")
    if key_mask is not None and key_mask.shape != (B, H, W):
        raise InputError(f"key_mask of shape {key_mask.shape}: {(B, H, W)}")
    if scale is not None and jnp.shape(scale) not in ((), (heads,)):
        raise InputError(f"scale of shape {jnp.shape(scale)}: a number or one for each of the {heads} heads")
