"""Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles (Ryali et al., 2023, arXiv:2306.00989).

A plain transformer in four stages that learns its sense of place from masked pretraining: attention in windows that
shrink with the map, so that each keeps to its pixels, then global; the way down is a 2x2 maximum of the queries.
Official repository: facebookresearch/hiera; compared here with timm's. Images are whole: the masking of pretraining is
not here.

The `abswin` variants have positions of two parts (Bolya et al., 2023, arXiv:2311.05613): a coarse map, resized, and one
of a window, repeated in each.
"""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.kernels import window_attention
from vision_jax.layers.attention import QKV, aggregate, attention_probabilities
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.interpolate import bicubic_antialiased
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.pooling import avg_pool, max_pool
from vision_jax.layers.position_map import PositionMap
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.scale import LayerScale
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups
from vision_jax.parameters import (
    Constant,
    Normal,
    VarianceScaling,
    lecun_normal,
    param,
    torch_default,
    trunc_normal,
    zeros,
)  # fmt: skip
from vision_jax.registry import check, register

PATCH = 4  # pixels between the centres of patches


@dataclasses.dataclass(frozen=True)
class HieraConfig(ModelConfig):
    """A Hiera; `embed_dim` and `num_heads` are the first stage's, and double with each.

    Attributes:
      local: for each stage whether its attention is in windows; the block that halves the map goes with those before.
      position_map: (height, width) of the coarse positions of `abswin`; None for a position a patch.
      pooled_shortcut: around the blocks that halve the map lie maximum and mean, not a linear map and the maximum.
      plain_init: weights start as ViT's; else as Flax's do, which is timm's "jax".
    """

    embed_dim: int = 96
    num_heads: int = 1
    depths: tuple = (2, 3, 16, 3)
    local: tuple = (True, True, False, False)
    mlp_ratio: float = 4.0
    position_map: tuple | None = None
    pooled_shortcut: bool = False
    layer_scale_init: float | None = None
    plain_init: bool = True

    def __post_init__(self):
        same = len(self.local) == len(self.depths)
        check(same, f"depths={self.depths} and local={self.local} differ in length")
        fits = self.embed_dim % self.num_heads == 0
        check(fits, f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        unit = PATCH * self.window_size
        whole = all(side % unit == 0 for side in pair(self.img_size))
        check(whole, f"img_size={self.img_size} must be a multiple of {unit}, the pixels of a window")

    @property
    def window_size(self):
        """Of the first stage, in tokens: one token is left of it in the last."""
        return 2 ** (len(self.depths) - 1)


class Init(NamedTuple):
    """Initialisers of a block: linear maps, those that end a branch, the biases of attention and of the MLP."""

    linear: object
    last: object
    bias: object
    mlp_bias: object


def block_init(plain, index):
    """Those of block `index`: deeper branches start smaller."""
    shrink = 1 / (2 * (index + 1))
    if plain:
        std = 0.02 * math.sqrt(shrink)
        return Init(trunc_normal, Normal(std, limit=2 * std / 0.02), Constant(0.02), Constant(0.02))
    return Init(*(VarianceScaling(n, "fan_avg", "uniform") for n in (1.0, shrink)), zeros, Normal(1e-6))


class UnitAttention(nnx.Module):
    """Attention in windows or over the whole map, [B, H, W, din] -> [B, H, W, dout], or of half the size.

    Args:
      din, dout: channels in and out.
      num_heads: number of heads; divides dout.
      window: side of a window, in tokens; None for the whole map.
      halve: queries are the maxima of 2x2.
      init: an `Init`.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, din, dout, num_heads, *, window, halve, init, dtype):
        self.window, self.halve = window, halve
        self.qkv = QKV(din, num_heads, dout // num_heads, init=init.linear, bias_init=init.bias, dtype=dtype)
        self.proj = Linear(dout, dout, init=init.last, bias_init=init.bias, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        if self.window and not self.halve:
            out = window_attention(q, k, v, window_size=(self.window,) * 2)
            return self.proj(out.reshape(*out.shape[:3], -1))
        (B, H, W, heads, d), window = q.shape, self.window
        if self.halve:
            q = max_pool(q.reshape(B, H, W, -1), 2, stride=2)
            q = q.reshape(*q.shape[:3], heads, d)
        rows, columns = (n // window for n in (H, W)) if window else (1, 1)
        q_windows, k, v = (into_windows(y, rows, columns) for y in (q, k, v))
        out = aggregate(tap(self, "probabilities", attention_probabilities(q_windows, k)), v)
        h, w = q.shape[1:3]
        out = out.reshape(B, rows, columns, h // rows, w // columns, -1).swapaxes(2, 3)
        return self.proj(out.reshape(B, h, w, -1))


def into_windows(x, rows, columns):
    """[B, H, W, heads, d] -> [B * rows * columns, N, heads, d]."""
    B, H, W, heads, d = x.shape
    x = x.reshape(B, rows, H // rows, columns, W // columns, heads, d).swapaxes(2, 3)
    return x.reshape(B * rows * columns, -1, heads, d)


class HieraBlock(nnx.Module):
    """Attention and an MLP; where channels double, the map is halved: [B, H, W, din] -> [B, H', W', dout]."""

    def __init__(self, c, din, dout, heads, *, window, index, norm):
        init, kw, halve = block_init(c.plain_init, index), dict(dtype=c.dtype), din != dout
        self.halve, hidden = halve, int(dout * c.mlp_ratio)

        def linear(a, b, *, dtype):
            return Linear(a, b, init=init.linear if a == dout else init.last, bias_init=init.mlp_bias, dtype=dtype)

        self.norm1 = norm(din)
        expands = halve and not c.pooled_shortcut
        self.proj = Linear(din, dout, init=init.linear, bias_init=init.bias, **kw) if expands else None
        self.attn = UnitAttention(din, dout, heads, window=window, halve=halve, init=init, **kw)
        self.norm2, self.mlp = norm(dout), Mlp(dout, hidden, linear=linear, **kw)
        scaled = c.layer_scale_init is not None
        self.ls1, self.ls2 = (LayerScale(dout, c.layer_scale_init, **kw) if scaled else None for _ in range(2))

    def __call__(self, x, train=None):
        y = self.norm1(x)
        if self.proj:
            x = max_pool(self.proj(y), 2, stride=2)
        elif self.halve:
            x = jnp.concatenate([max_pool(x, 2, stride=2), avg_pool(x, 2, stride=2)], axis=-1)
        y = tap(self, "attn", self.attn(y, train))
        x = x + drop_path(self.ls1(y) if self.ls1 else y, train)
        y = tap(self, "mlp", self.mlp(self.norm2(x), train))
        x = x + drop_path(self.ls2(y) if self.ls2 else y, train)
        return tap(self, "output", constrain_batch(x))


_TIMM = ((r"^(pos_embed\w*)\.table$", r"\1"),)


class Hiera(Model):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    inert = (r"attn\.qkv\.bias\[1\]$",)  # what is added to every key adds one number to all scores of a query
    torch_names: ClassVar = {
        "timm": _TIMM,
        "official": (*_TIMM, (r"^head\.norm\.", "norm."), (r"^head\.fc\.", "head.projection.")),
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        self.grid = tuple(n // PATCH for n in pair(c.img_size))
        init = (trunc_normal, torch_default) if c.plain_init else (lecun_normal, zeros)
        self.patch_embed = PatchEmbed(
            c.in_chans, c.embed_dim, 7, stride=PATCH, padding=3, init=init[0], bias_init=init[1], **kw
        )  # fmt: skip
        if c.position_map:
            self.pos_embed = PositionMap(c.position_map, c.embed_dim)
            self.pos_embed_win = PositionMap((c.window_size,) * 2, c.embed_dim)
        else:
            self.pos_embed = param((1, math.prod(self.grid), c.embed_dim), trunc_normal)
        stages = [stage for stage, depth in enumerate(c.depths) for _ in range(depth)]

        def block(index):
            stage, before = stages[index], stages[max(index - 1, 0)]
            window = c.window_size // 2**before if c.local[before] else None
            dims = (c.embed_dim * 2**n for n in (before, stage))
            return HieraBlock(c, *dims, c.num_heads * 2**stage, window=window, index=index, norm=norm)

        (rates,) = linear_rates(c.drop_path_rate, (len(stages),))
        self.blocks = Stack(block, rates, remat=c.remat)
        dim = c.embed_dim * 2 ** stages[-1]
        classifier = functools.partial(Linear, init=zeros)
        self.head = PooledHead(dim, c.num_classes, norm=norm, drop=c.drop_rate, classifier=classifier, **kw)
        self.ends = tuple(sum(c.depths[: i + 1]) - 1 for i in range(len(c.depths)))
        self.feature_info = tuple(
            FeatureInfo(f"blocks.{end}", c.embed_dim * 2**i, PATCH * 2**i) for i, end in enumerate(self.ends)
        )

    def positions(self):
        """[1, H, W, C] of the patches."""
        if not self.config.position_map:
            return self.pos_embed[...].reshape(1, *self.grid, -1)
        window = self.pos_embed_win.table[...]
        repeats = [n // side for n, side in zip(self.grid, window.shape[1:3], strict=True)]
        return bicubic_antialiased(self.pos_embed.table[...], self.grid) + jnp.tile(window, (1, *repeats, 1))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps after the stages in `out_indices` instead.
        """
        self.check_size(images)
        x = self.patch_embed(images)
        x = x + self.positions().astype(x.dtype)
        if not pyramid:
            return self.blocks(x, train)
        ends = [self.ends[i] for i in self.indices(out_indices)]
        return self.blocks(x, train, collect=ends)[1]

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled and normalised features [B, C] without a head."""
        return self.head(x, train)

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grid) if leaf == "pos_embed" else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        return block_groups(r"^(patch_embed|pos_embed)", {"blocks": self.blocks})


_MAE = {"mae_in1k_ft_in1k": {}, "mae": {"num_classes": 0}}
_SBB = {tag: {} for tag in ("sbb2_e200_in12k_ft_in1k", "sbb2_pd_e200_in12k_ft_in1k")}
_SBB |= {tag: {"num_classes": 11_821} for tag in ("sbb2_e200_in12k", "sbb2_pd_e200_in12k")}
_ABSWIN = dict(img_size=256, layer_scale_init=1e-5, plain_init=False)


def _hiera(name, params, gmacs, depths, tags=_MAE, licence="cc-by-nc-4.0", crop_pct=0.9, **fields):
    register(
        f"hiera_{name}", Hiera, HieraConfig(depths=depths, **fields), params=params, gmacs=gmacs, paper="2306.00989",
        licence=licence, tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_hiera("tiny_224", 27_910_216, 4.91, (1, 2, 7, 2))
_hiera("small_224", 35_008_072, 6.42, (1, 2, 11, 2))
_hiera("base_224", 51_524_968, 9.40, (2, 3, 16, 3))
_hiera("base_plus_224", 69_896_616, 12.67, (2, 3, 16, 3), embed_dim=112, num_heads=2)
_hiera("large_224", 213_739_912, 40.34, (2, 6, 36, 4), embed_dim=144, num_heads=2)
_hiera("huge_224", 672_779_752, 124.85, (2, 6, 36, 4), embed_dim=256, num_heads=4)
_hiera(
    "small_abswin_256", 34_361_800, 8.29, (1, 2, 11, 2), _SBB, "apache-2.0", 0.95, position_map=(16, 16),
    pooled_shortcut=True, **_ABSWIN,
)  # fmt: skip
_hiera("base_abswin_256", 51_267_304, 12.46, (2, 3, 16, 3), ("",), "apache-2.0", 0.95, position_map=(14, 14), **_ABSWIN)
