"""ViR: Towards Efficient Vision Retention Backbones (Hatamizadeh et al., 2023, arXiv:2310.19731).

A ViT whose tokens see only those before them, less the farther away: retention (Sun et al., 2023, arXiv:2307.08621)
with one decay a head, without softmax. So it runs in parallel, chunk by chunk, or token by token, all to the same
result; `kernels.linear_attention` takes chunks. The class token comes last, for there it sees all patches.

Official repository: NVlabs/ViR, announced but empty; compared with the authors' code as it was sent to reviewers
(anom63931/ViR, no licence stated, no weights). That code's recurrent and chunkwise forms are the paper's retention, and
so is this. Its parallel form, which it trains with, is not: it takes the softmax of the decayed scores, over the tokens
that follow too, with scores of 0. `softmax=True` computes that. The paper's gate and norm of heads are in neither.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.functional import tap
from vision_jax.kernels import linear_attention
from vision_jax.layers.attention import QKV, aggregate
from vision_jax.layers.block import Block
from vision_jax.layers.conv import pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, patch_grid
from vision_jax.parameters import Normal, param
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register


@dataclasses.dataclass(frozen=True)
class ViRConfig(ModelConfig):
    """A ViR; `softmax`: the released parallel form instead of retention."""

    patch_size: int | tuple = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    layer_scale_init: float | None = 1e-5
    softmax: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        dim, heads = self.embed_dim, self.num_heads
        check(dim % heads == 0, f"embed_dim={dim} must be a multiple of num_heads={heads}")
        patch_grid(self.img_size, self.patch_size)


@functools.cache
def log_decays(num_heads):
    """The logarithm of each head's decay, [heads]: of 1 - 1/32 for the first to 1 - 1/512 for the last."""
    return np.log1p(-np.exp(np.linspace(math.log(1 / 32), math.log(1 / 512), num_heads)))


class Retention(nnx.Module):
    """Token n sees those up to itself, each decayed by its distance, [B, N, C] -> [B, N, C] (equations 3 to 5).

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      softmax: the released code's parallel form.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, num_heads, *, softmax=False, dtype=jnp.float32):
        self.softmax = softmax
        self.qkv = QKV(dim, num_heads, dim // num_heads, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        q = q * q.shape[-1] ** -0.5
        decays = log_decays(q.shape[2])
        if self.softmax:
            out = aggregate(tap(self, "probabilities", decayed_probabilities(q, k, decays)), v)
        else:
            out = linear_attention(q, k, v, log_decay=decays, causal=True)
        return self.proj(out.reshape(x.shape))


def decayed_probabilities(q, k, log_decays):
    """softmax(q k^T * decays), 0 for the decay of what follows: [B, N, heads, head_dim] twice -> [B, heads, N, N]."""
    distance = np.subtract.outer(np.arange(q.shape[1]), np.arange(q.shape[1]))
    decays = np.where(distance < 0, 0, np.exp(log_decays[:, None, None] * np.maximum(distance, 0)))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    return jax.nn.softmax(scores * decays.astype(scores.dtype), axis=-1)


class VisionRetention(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    torch_names: ClassVar = {
        "official": ((r"\.attn\.qkv\.", ".retention.qkv."), (r"\.attn\.proj\.", ".retention.out_proj."))
    }

    def __init__(self, config):
        c = self.config = config
        dim, kw = c.embed_dim, dict(dtype=c.dtype)
        norm = functools.partial(LayerNorm, epsilon=1e-6, **kw)
        self.grid = patch_grid(c.img_size, c.patch_size)
        self.patch_embed = PatchEmbed(c.in_chans, dim, c.patch_size, **kw)
        self.cls_token = param((1, 1, dim), Normal(1e-6))
        self.pos_embed = param((1, math.prod(self.grid), dim), Normal(0.02))

        def block(index):
            attn, mlp = Retention(dim, c.num_heads, softmax=c.softmax, **kw), Mlp(dim, int(dim * c.mlp_ratio), **kw)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, **kw)

        (rates,) = linear_rates(c.drop_path_rate, (c.depth,))
        self.blocks = Stack(block, rates, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(dim)
        self.head = Linear(dim, c.num_classes, **kw) if c.num_classes else None
        reduction = pair(c.patch_size)[0]
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", dim, reduction) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, N + 1, C], normalised: the patches row by row, then the class token.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        self.check_size(images)
        x = self.patch_embed(images)
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C) + self.pos_embed[...].astype(x.dtype)
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, C))
        x = jnp.concatenate([x, token], axis=1)
        if pyramid:
            _, maps = self.blocks(x, train, collect=self.indices(out_indices))
            return [m[:, :-1].reshape(B, H, W, C) for m in maps]
        return self.norm(self.blocks(x, train))

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or the class token's features [B, C] without a head."""
        x = dropout(x[:, -1], self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grid, 0) if leaf == "pos_embed" else array

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        return block_groups(r"^(patch_embed|cls_token|pos_embed)", {"blocks": self.blocks})


def _vir(name, params, gmacs, **fields):
    register(
        name, VisionRetention, ViRConfig(**fields), params=params, gmacs=gmacs, paper="2310.19731", licence="",
        reference="anom63931/ViR", mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.9,
    )  # fmt: skip


# multiply-adds are not published: counted of the authors' parallel form
LARGE = dict(embed_dim=1024, depth=24, num_heads=16)

_vir("vir_small_patch16_224", 22_059_496, 4.6, embed_dim=384, num_heads=6)
_vir("vir_base_patch16_224", 86_585_320, 17.6)
_vir("vir_large_patch16_224", 304_374_760, 61.6, **LARGE)
_vir("vir_large_patch14_224", 304_251_880, 81.0, **LARGE, patch_size=14)
