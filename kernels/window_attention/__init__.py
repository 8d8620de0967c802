"""Windowed attention: partition, cyclic shift, its mask and the bias inside the operator."""

import jax.numpy as jnp
from vision_jax.kernels.window_attention import xla

from vision_jax.errors import InputError


def window_attention(
    q, k, v, *, window_size, shift=0, dilation=1, bias=None, key_mask=None, scale=None, return_lse=False
):
    """Softmax attention inside the windows of a map (Swin: arXiv:2103.14030, equation 4 and figure 4).

    The map is shifted cyclically by `-shift`, cut into windows, and put back; tokens that only the wrap brought into
    one window do not see each other. Differentiable in q, k, v, bias and scale.

    Args:
      q: queries [B, H, W, heads, head_dim].
      k: keys [B, H, W, key_heads, head_dim]; key_heads divides heads (each serves several query heads).
      v: values [B, H, W, key_heads, value_dim].
      window_size: tokens of a window along each axis, an int or (height, width). Times the dilation it divides H and W:
        padding is the caller's, before the projection, because padded tokens take part.
      shift: cyclic shift in tokens, an int or one for each axis; below window_size * dilation.
      dilation: distance of a window's tokens, an int or one for each axis; H / window_size is MaxViT's grid.
      bias: added to the scaled scores, [heads, N, N] with N tokens a window, row by row; or [windows, heads, N, N].
      key_mask: bool [B, H, W], False for keys that nobody sees. A query that sees none gives 0, with gradient 0.
      scale: factor of the scores, a number or [heads]; None is head_dim ** -0.5.
      return_lse: return the log-sum-exp of the scores too.

    Returns:
      [B, H, W, heads, value_dim] in v's dtype; or (that, [B, H, W, heads] in at least float32). Softmax is in at least
      float32.

    Raises:
      InputError: shapes or sizes that do not fit together.
    """
    window_size, shift, dilation = (
        _pair("window_size", window_size, 1),
        _pair("shift", shift, 0),
        _pair("dilation", dilation, 1),
    )
    _check(q, k, v, window_size, shift, dilation, bias, key_mask, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = xla.window_attention(
        q, k, v, window_size=window_size, shift=shift, dilation=dilation, bias=bias, key_mask=key_mask, scale=scale
    )
    return (out, lse) if return_lse else out


def _pair(what, value, least):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise InputError(f"{what}={value!r}: an int of at least {least}, or a pair of them")
    return pair


def _check(q, k, v, window_size, shift, dilation, bias, key_mask, scale):
    if q.ndim != 5 or k.ndim != 5 or v.ndim != 5:
        raise InputError(f"q, k, v of shapes {q.shape}, {k.shape}, {v.shape}: [B, H, W, heads, head_dim] each")
    B, H, W, heads, head_dim = q.shape
    if k.shape[:3] != (B, H, W) or v.shape[:4] != k.shape[:4] or k.shape[4] != head_dim:
        raise InputError(f"k {k.shape} and v {v.shape} do not fit q {q.shape}: one map, one head_dim for q and k")
    if heads % k.shape[3]:
        raise InputError(f"k and v have {k.shape[3]} heads, which do not divide the {heads} of q")
    for axis, n, w, s, d in zip("HW", (H, W), window_size, shift, dilation, strict=True):
        if n % (w * d):
            near = -(-n // (w * d)) * w * d
            given = f"{axis}={n} is not a multiple of window_size * dilation = {w * d}"
            raise InputError(f"{given}: pad the map to {near}, before the projection")
        if s >= max(w * d, 2):
            raise InputError(f"shift={s} along {axis} must be below window_size * dilation = {w * d}")
    tokens, windows = window_size[0] * window_size[1], H * W // (window_size[0] * window_size[1])
    if bias is not None and bias.shape not in ((heads, tokens, tokens), (windows, heads, tokens, tokens)):
        raise InputError(f"bias of shape {bias.shape}: {(heads, tokens, tokens)} or {(windows, heads, tokens, tokens)}")
    if key_mask is not None and key_mask.shape != (B, H, W):
        raise InputError(f"key_mask of shape {key_mask.shape}: {(B, H, W)}")
    if scale is not None and jnp.shape(scale) not in ((), (heads,)):
        raise InputError(f"scale of shape {jnp.shape(scale)}: a number or one for each of the {heads} heads")
