"""NAT, DiNAT, DiNAT-S and the isotropic models as their authors published them, from a directory of their files.

No package has them. VISION_JAX_NAT names the folder `classification` of SHI-Labs/Neighborhood-Attention-Transformer
(commit d334f5bb0bd7). What it takes from NATTEN 0.14 to 0.17, today's NATTEN does not have: `NeighborhoodAttention2D`
here stands for it. A test holds the operator equal to NATTEN's without the bias, to loops over the equations with it.
"""

import importlib
import os
import sys
import types

import torch

__version__ = "d334f5bb0bd73cad05e5aeaf7c14cce3876a9650"


def windows(size, kernel_size, dilation):
    """Indices of each position's neighbours, and of their offsets in the bias: two [size, kernel_size]."""
    neighbours, offsets = [], []
    for position in range(size):
        group = list(range(position % dilation, size, dilation))
        place = group.index(position)
        first = min(max(place - kernel_size // 2, 0), len(group) - kernel_size)
        neighbours.append(group[first : first + kernel_size])
        offsets.append([first + i - place + kernel_size - 1 for i in range(kernel_size)])
    return torch.tensor(neighbours), torch.tensor(offsets)


def attend(q, k, v, rpb, kernel_size, dilation):
    """Neighborhood attention with a bias or None; q, scaled, k, v: [B, H, W, heads, head_dim]."""
    (rows, row_offsets), (columns, column_offsets) = (windows(size, kernel_size, dilation) for size in q.shape[1:3])
    k, v = (x[:, rows[:, None, :, None], columns[None, :, None, :]] for x in (k, v))  # [B, H, W, k, k, heads, d]
    scores = torch.einsum("bxynd,bxyijnd->bnxyij", q, k)
    if rpb is not None:
        scores = scores + rpb[:, row_offsets[:, None, :, None], column_offsets[None, :, None, :]]
    weights = scores.flatten(-2).softmax(-1).view(scores.shape)
    return torch.einsum("bnxyij,bxyijnd->bxynd", weights, v)


class NeighborhoodAttention2D(torch.nn.Module):
    """The module that the models are built of; a map smaller than the window is padded below and to the right."""

    def __init__(
        self, dim, num_heads, kernel_size, dilation=None, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0,
        proj_drop=0.0,
    ):  # fmt: skip
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation or 1
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = torch.nn.Linear(dim, 3 * dim, bias=qkv_bias)
        table = torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
        self.rpb = torch.nn.Parameter(torch.nn.init.trunc_normal_(table, std=0.02, a=-2.0, b=2.0)) if bias else None
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, x):
        B, H, W, C = x.shape
        least = self.kernel_size * self.dilation
        x = torch.nn.functional.pad(x, (0, 0, 0, max(0, least - W), 0, max(0, least - H)))
        q, k, v = self.qkv(x).view(B, *x.shape[1:3], 3, self.num_heads, -1).unbind(3)
        x = attend(q * self.scale, k, v, self.rpb, self.kernel_size, self.dilation)
        return self.proj(x[:, :H, :W].reshape(B, H, W, C))


def authors(module):
    """A module of the authors' code, which finds the class above where it looks for NATTEN."""
    if not (folder := os.environ.get("VISION_JAX_NAT")):
        raise SystemExit("VISION_JAX_NAT must name the folder of the authors' files: see tests/references/nat.py")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    natten = types.ModuleType("natten")
    natten.NeighborhoodAttention2D = NeighborhoodAttention2D
    installed = sys.modules.get("natten")
    sys.modules["natten"] = natten
    try:
        return importlib.import_module(module)
    finally:
        del sys.modules["natten"]
        if installed:
            sys.modules["natten"] = installed


def create_model(name, **kwargs):
    """A variant at its published size."""
    module = "isotropic" if "isotropic" in name else "dinats" if name.startswith("dinat_s_") else name.split("_")[0]
    return getattr(authors(module), name)(**kwargs)


def NAT(**kwargs):  # noqa: N802 (the authors' name)
    """NAT and DiNAT of any size."""
    return authors("nat").NAT(**kwargs)


def DiNAT_s(**kwargs):  # noqa: N802 (the authors' name)
    """DiNAT-S of any size."""
    return authors("dinats").DiNAT_s(**kwargs)


def NATIsotropic(**kwargs):  # noqa: N802 (the authors' name)
    """An isotropic model of any size."""
    return authors("isotropic").NATIsotropic(**kwargs)
