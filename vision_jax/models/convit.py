"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases (d'Ascoli et al., 2021).

arXiv:2103.10697. Gated positional self-attention starts as a convolution, each head looking at one offset, and learns
by a gate a head how far to go by content instead. The first layers are of this kind; the class token joins after them.

Official repository: facebookresearch/convit; compared here with timm's. The mixture of the two attentions is divided by
its sum in both; the sum is one, and the division is left out.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import QKV, Attention, aggregate, attention_probabilities
from vision_jax.layers.block import Block
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.stack import Stack
from vision_jax.models.base import ClassTokenModel, FeatureInfo, ModelConfig, block_groups, patch_grid
from vision_jax.parameters import ones, param, trunc_normal
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class ConViTConfig(ModelConfig):
    """A ConViT: the first `local_depth` blocks attend by position; `locality_strength` is the paper's alpha."""

    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    local_depth: int = 10
    num_heads: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    locality_strength: float = 1.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}",
        )
        check(
            0 <= self.local_depth < self.depth,
            f"local_depth={self.local_depth} must be below depth={self.depth}: the class token joins after them",
        )
        patch_grid(self.img_size, self.patch_size)


@functools.cache
def relative_positions(height, width):
    """[N, N, 3] of a grid of N tokens: columns and rows from a query to a key, and their squared distance."""
    rows, columns = (axis.reshape(-1) for axis in np.indices((height, width)))
    dx, dy = columns[None, :] - columns[:, None], rows[None, :] - rows[:, None]
    return np.stack([dx, dy, dx**2 + dy**2], axis=-1)


@dataclasses.dataclass(frozen=True)
class Offsets:
    """Kernel [3, heads] whose heads each attend to one offset of a square around the query (section 2, figure 2)."""

    strength: float

    def __call__(self, draw, shape):
        # heads beyond the largest square keep a random start
        side = math.isqrt(shape[1])
        y, x = (axis.reshape(-1) - (side - 1) / 2 for axis in np.indices((side, side))[::-1])
        square = np.stack([2 * x, 2 * y, -np.ones(side * side)]).astype(np.float32) * self.strength
        rest = trunc_normal(draw, (3, shape[1] - side * side)) * self.strength
        return jnp.concatenate([square, rest], axis=1)


def identity_values(draw, shape):
    """Kernel [C, 3, heads, head_dim] whose values are the tokens themselves (section 2)."""
    C, _, heads, head_dim = shape
    values = np.eye(C, dtype=np.float32).reshape(C, 1, heads, head_dim)
    return jnp.concatenate([trunc_normal(draw, (C, 2, heads, head_dim)), values], axis=1)


class GatedPositionalAttention(nnx.Module):
    """Gated positional self-attention, [B, N, C] -> [B, N, C] (section 3).

    (1 - sigmoid(gate)) softmax(q k^T / sqrt(d)) + sigmoid(gate) softmax(v^T r), with r the relative position.
    """

    def __init__(self, dim, num_heads, grid, *, qkv_bias, strength, attn_drop, proj_drop, dtype):
        self.grid, self.attn_drop, self.proj_drop = grid, attn_drop, proj_drop
        self.qkv = QKV(dim, num_heads, dim // num_heads, bias=qkv_bias, init=identity_values, dtype=dtype)
        # logits of squared distances: bfloat16 could not tell far ones apart
        self.pos_proj = Linear(3, num_heads, init=Offsets(strength), dtype=jnp.promote_types(dtype, jnp.float32))
        self.gating_param = param((num_heads,), ones)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        content = attention_probabilities(q, k)
        position = jax.nn.softmax(self.pos_proj(jnp.asarray(relative_positions(*self.grid))), axis=1)
        gate = jax.nn.sigmoid(self.gating_param[...].astype(content.dtype))[:, None, None]
        probabilities = (1 - gate) * content + gate * position.transpose(2, 0, 1)
        probabilities = tap(self, "probabilities", probabilities)
        out = aggregate(dropout(probabilities, self.attn_drop, train), v)
        return dropout(self.proj(out.reshape(x.shape)), self.proj_drop, train)


class ConViT(ClassTokenModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    # what is added to every key, or every position, adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$", r"attn\.pos_proj\.bias$")

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        drops = dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
        self.grid = patch_grid(c.img_size, c.patch_size)
        self.patch_embed = PatchEmbed(c.in_chans, c.embed_dim, c.patch_size, **kw)
        self.cls_token = param((1, 1, c.embed_dim), trunc_normal)
        self.pos_embed = param((1, math.prod(self.grid), c.embed_dim), trunc_normal)

        def block(attn):
            mlp = Mlp(c.embed_dim, int(c.embed_dim * c.mlp_ratio), drop=c.proj_drop_rate, **kw)
            return Block(c.embed_dim, attn=attn, mlp=mlp, norm=norm, **kw)

        def local(index):
            return block(
                GatedPositionalAttention(
                    c.embed_dim,
                    c.num_heads,
                    self.grid,
                    qkv_bias=c.qkv_bias,
                    strength=c.locality_strength,
                    **drops,
                    **kw,
                )
            )

        def plain(index):
            return block(Attention(c.embed_dim, c.num_heads, qkv_bias=c.qkv_bias, **drops, **kw))

        run = dict(scan=c.scan_blocks, remat=c.remat)
        local_rates, rates = linear_rates(c.drop_path_rate, (c.local_depth, c.depth - c.local_depth))
        self.local_blocks, self.blocks = Stack(local, local_rates, **run), Stack(plain, rates, **run)
        self.norm = norm(c.embed_dim)
        self.head = Linear(c.embed_dim, c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", c.embed_dim, c.patch_size) for i in range(c.depth))

    @property
    def torch_names(self):
        """timm's names: all blocks are in one list there."""
        after = self.config.local_depth
        return {
            "timm": (
                (r"^blocks\.(\d+)\.", lambda match: f"blocks.{int(match[1]) + after}."),
                (r"^local_blocks\.(\d+)\.(.*)qkv\.", (r"blocks.\1.\2qk.", r"blocks.\1.\2qk.", r"blocks.\1.\2v.")),
                (r"^local_blocks\.", "blocks."),
            )
        }

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C], normalised.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        c, B = self.config, images.shape[0]
        self.check_size(images)
        x = self.patch_embed(images).reshape(B, -1, c.embed_dim)
        x = dropout(x + self.pos_embed[...].astype(x.dtype), c.pos_drop_rate, train)
        indices, maps = self.indices(out_indices) if pyramid else (), {}

        def run(blocks, x, first):
            wanted = [i for i in indices if first <= i < first + len(blocks)]
            x = blocks(x, train, collect=[i - first for i in wanted])
            x, found = x if wanted else (x, ())
            maps.update(zip(wanted, found, strict=True))
            return x

        x = run(self.local_blocks, x, 0)
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (B, 1, c.embed_dim)), x], axis=1)
        x = run(self.blocks, x, c.local_depth)
        if pyramid:
            return [maps[i][:, int(i >= c.local_depth) :].reshape(B, *self.grid, -1) for i in indices]
        return self.norm(x)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        stacks = {"local_blocks": self.local_blocks, "blocks": self.blocks}
        return block_groups(r"^(patch_embed|pos_embed|cls_token)", stacks)


def _convit(name, num_heads, params, gmacs):
    register(
        name, ConViT, ConViTConfig(embed_dim=48 * num_heads, num_heads=num_heads),
        params=params, gmacs=gmacs, paper="2103.10697", licence="apache-2.0", tags=("fb_in1k",),
    )  # fmt: skip


_convit("convit_tiny", 4, 5_710_512, 1.26)
_convit("convit_small", 9, 27_777_322, 5.76)
_convit("convit_base", 16, 86_540_040, 17.52)
