"""What else computes window and neighborhood attention. Nothing here is imported before it is asked for."""

import importlib

import jax
import numpy as np

from vision_jax.kernels.window_attention.xla import seam_mask


def peers(case, arrays, natten_backend=None):
    """The peers that are installed and compute the case on this device.

    Args:
      case: a `kernels.Case`.
      arrays: of `kernels.operands`.
      natten_backend: NATTEN's name of one of its, or None.

    Returns:
      {name: {"forward", "train": functions that start a call, "wait": of what one gave, returns when all work is
      done, "numpy": the result of forward in float64}}.
    """
    if jax.default_backend() not in ("cpu", "gpu") or case.operator == "linear":
        return {}
    try:
        torch = importlib.import_module("torch")
        if case.operator == "window":
            return {"SDPA on windows": _calls(torch, _windows(torch, case), arrays)}
        natten = importlib.import_module("natten.functional")
    except ImportError:
        return {}

    def attend(q, k, v, _):
        return natten.na2d(q, k, v, backend=natten_backend, **case.options)

    calls = _calls(torch, attend, arrays)
    if jax.default_backend() == "cpu":
        del calls["train"]  # NATTEN has no gradient there
    return {f"NATTEN {natten_backend or ''}".strip(): calls}


def _calls(torch, attend, arrays):
    """The entries of a peer: `attend` is a function of q, k, v [B, H, W, heads, d] and the bias, torch tensors."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    *maps, bias = arrays
    q, k, v, d_out = (torch.from_numpy(x).to(device, torch.bfloat16) for x in maps)
    bias = None if bias is None else torch.from_numpy(bias).to(device, torch.bfloat16)
    own = [None if x is None else x.clone().requires_grad_() for x in (q, k, v, bias)]

    def forward():
        with torch.no_grad():
            return attend(q, k, v, bias)

    def train():
        return torch.autograd.grad(attend(*own), [x for x in own if x is not None], d_out)

    return {
        "forward": forward,
        "train": train,
        "wait": lambda _: torch.cuda.synchronize() if device == "cuda" else None,
        "numpy": lambda: forward().to("cpu", torch.float32).numpy().astype(np.float64),
    }


def _windows(torch, case):
    """Swin's attention as PyTorch has it: roll, partition, attention with a mask, merge, roll back."""
    w, shift, scale = case.options["window_size"], case.options["shift"], case.head_dim**-0.5
    H, W = case.size
    windows, heads = H * W // w**2, case.heads
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    seen = torch.from_numpy(seam_mask((H, W), (w, w), (shift, shift), (1, 1))).to(device)
    hidden = torch.zeros(windows, 1, w * w, w * w, dtype=torch.bfloat16, device=device)
    hidden.masked_fill_(~seen[:, None], float("-inf"))

    def split(x):
        x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
        x = x.reshape(-1, H // w, w, W // w, w, heads, case.head_dim).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(-1, windows * heads, w * w, case.head_dim)

    def attend(q, k, v, bias):
        added = None
        if shift:  # [1, windows * heads, N, N], the same for every image
            added = (hidden if bias is None else hidden + bias).expand(windows, heads, w * w, w * w).flatten(0, 1)[None]
        elif bias is not None:
            added = bias.expand(windows, *bias.shape).flatten(0, 1)[None]
        y = torch.nn.functional.scaled_dot_product_attention(*map(split, (q, k, v)), attn_mask=added, scale=scale)
        y = y.reshape(-1, H // w, W // w, heads, w, w, case.head_dim).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(-1, H, W, heads, case.head_dim)
        return torch.roll(y, (shift, shift), (1, 2)) if shift else y

    return attend
