"""VOLO: Vision Outlooker for Visual Recognition (Yuan et al., 2021, arXiv:2106.13112).

Outlook attention reads the weights of a window's pixels from the pixel at its centre, by one linear map and without
keys; it encodes fine tokens (8x8 pixels) before a plain transformer at half their resolution. Class attention ends it.

Official repository: sail-sg/volo; compared here with timm's. As released, outlookers have no drop path, and the logits
are the class token's plus half the largest of the patches'. Trained by token labelling (Jiang et al., 2021,
arXiv:2104.10858), each patch has a label of its own: `token_labels=True` gives the training both.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import Attention
from vision_jax.layers.block import Block
from vision_jax.layers.class_attention import ClassAttention, ClassBlock
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.fold import fold, unfold
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import BatchNorm, LayerNorm
from vision_jax.layers.pooling import avg_pool
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, TokenLogits, patch_grid
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import check, register

PATCH, HALVED = 8, 2  # pixels of an outlooker's token, and these of a transformer's


@dataclasses.dataclass(frozen=True)
class VOLOConfig(ModelConfig):
    """A VOLO: one stage of outlookers, then transformers, the first of each tuple being the outlookers'.

    `token_labels`: the train mode gives `TokenLogits`; `mix_token`: it then mixes each image with another.
    """

    stem_dim: int = 64
    embed_dims: tuple = (192, 384, 384, 384)
    depths: tuple = (4, 4, 8, 2)
    num_heads: tuple = (6, 12, 12, 12)
    class_depth: int = 2
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    token_labels: bool = False
    mix_token: bool = False
    pos_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        for field in ("depths", "num_heads"):
            given = getattr(self, field)
            check(
                len(given) == len(self.embed_dims) > 1,
                f"{field}={given} and embed_dims={self.embed_dims} must have one for each stage, two at least",
            )
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=True):
            check(dim % heads == 0, f"embed_dims={self.embed_dims} must be multiples of num_heads={self.num_heads}")
        check(
            len(set(self.embed_dims[1:])) == 1, f"embed_dims={self.embed_dims}: the transformers' stages must be equal"
        )
        check(self.token_labels or not self.mix_token, "mix_token=True needs token_labels=True")
        patch_grid(self.img_size, PATCH)


class OutlookAttention(nnx.Module):
    """Outlook attention, [B, H, W, C] -> [B, H, W, C] (section 3.1, algorithm 1).

    At every second pixel the weights of its window's pixels for each other are read from the mean of the pixels around
    it; windows overlap, and what they give a pixel is added up.

    Args:
      dim: channels.
      num_heads: number of heads; divides dim.
      window, stride: pixels of a window along an axis, and between windows.
      qkv_bias: whether the projection to values has a bias.
      attn_drop: dropout of the attention weights.
      dtype: dtype of the computation; the softmax is at least float32.
    """

    def __init__(self, dim, num_heads, *, window=3, stride=2, qkv_bias=False, attn_drop=0.0, dtype=jnp.float32):
        self.num_heads, self.window, self.stride, self.attn_drop = num_heads, window, stride, attn_drop
        self.scale = (dim // num_heads) ** -0.5
        self.v = Linear(dim, dim, bias=qkv_bias, dtype=dtype)
        self.attn = Linear(dim, num_heads * window**4, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        taps, windows = self.window**2, dict(stride=self.stride, padding=self.window // 2)
        v = unfold(self.v(x), self.window, **windows)
        h, w = v.shape[1:3]
        scores = self.attn(avg_pool(x, self.stride, stride=self.stride, ceil_mode=True))
        scores = scores.reshape(B, h, w, self.num_heads, taps, taps)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) * self.scale
        probabilities = tap(self, "probabilities", jax.nn.softmax(scores, axis=-1))
        probabilities = dropout(probabilities, self.attn_drop, train).astype(v.dtype)
        out = jnp.einsum("bhwnqk,bhwknd->bhwqnd", probabilities, v.reshape(B, h, w, taps, self.num_heads, -1))
        return self.proj(fold(out.reshape(B, h, w, taps, C), (H, W), self.window, **windows))


class ConvStem(nnx.Module):
    """Images [B, H, W, C] -> tokens [B, H/8, W/8, dim] by three convolutions and a projection (section 3.3)."""

    def __init__(self, channels, hidden, dim, *, dtype):
        conv = functools.partial(Conv, init=torch_default, bias_init=torch_default, dtype=dtype)
        layers, din = [], channels
        for kernel_size, stride in ((7, 2), (3, 1), (3, 1)):
            layers += [conv(din, hidden, kernel_size, stride=stride, bias=False), BatchNorm(hidden, dtype=dtype)]
            din = hidden
        self.conv = nnx.List(layers)
        self.proj = conv(hidden, dim, PATCH // 2, stride=PATCH // 2, padding=0)

    def __call__(self, x, train=None):
        for conv, norm in zip(self.conv[::2], self.conv[1::2], strict=True):
            x = jax.nn.relu(norm(conv(x), train))
        return self.proj(x)


class VOLO(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; with token labels, in train mode, `TokenLogits`."""

    classifier = ("head", "aux_head")
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.qkv\.bias\[1\]$",)
    torch_names: ClassVar = {
        "timm": (
            (r"^patch_embed\.conv\.(\d)\.", lambda match: f"patch_embed.conv.{int(match[1]) * 3 // 2}."),  # ReLUs count
            (r"^downsample\.", "network.1.proj."),
            (r"^stages\.0\.", "network.0."),
            (r"^stages\.(\d)\.", lambda match: f"network.{int(match[1]) + 1}."),
            (r"^(post_network\.\d+\.attn\.)qkv\.", (r"\1q.", r"\1kv.", r"\1kv.")),
        )
    }

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-5, dtype=c.dtype)
        options = dict(qkv_bias=c.qkv_bias, attn_drop=c.attn_drop_rate, **kw)
        dim, run = c.embed_dims[-1], dict(scan=c.scan_blocks, remat=c.remat)
        self.grid = tuple(side // PATCH // HALVED for side in pair(c.img_size))
        self.patch_embed = ConvStem(c.in_chans, c.stem_dim, c.embed_dims[0], **kw)
        self.downsample = Conv(
            c.embed_dims[0], dim, HALVED, stride=HALVED, padding=0, init=torch_default, bias_init=torch_default, **kw
        )
        self.pos_embed = param((1, *self.grid, dim), trunc_normal)
        stages, all_rates = [], linear_rates(c.drop_path_rate, c.depths)
        for i, (width, heads, rates) in enumerate(zip(c.embed_dims, c.num_heads, all_rates, strict=True)):

            def block(index, mixer=Attention if i else OutlookAttention, width=width, heads=heads):
                mlp = Mlp(width, int(width * c.mlp_ratio), **kw)
                return Block(width, attn=mixer(width, heads, **options), mlp=mlp, norm=norm, **kw)

            stages.append(Stack(block, rates if i else (0.0,) * c.depths[0], **run))
        self.stages = nnx.List(stages)

        def class_block(index):
            mlp = Mlp(dim, int(dim * c.mlp_ratio), **kw)
            return ClassBlock(dim, attn=ClassAttention(dim, c.num_heads[-1], **options), mlp=mlp, norm=norm, **kw)

        self.post_network = Stack(class_block, (0.0,) * c.class_depth, **run)
        self.cls_token = param((1, 1, dim), trunc_normal)
        self.norm = norm(dim)
        self.head = Linear(dim, c.num_classes, **kw) if c.num_classes else None
        self.aux_head = Linear(dim, c.num_classes, **kw) if c.num_classes else None
        names = ("network.0", *(f"network.{i + 1}" for i in range(1, len(c.depths))))
        self.feature_info = tuple(
            FeatureInfo(name, width, PATCH * HALVED if i else PATCH)
            for i, (name, width) in enumerate(zip(names, c.embed_dims, strict=True))
        )

    def __call__(self, images, train=None):
        if not (train and self.config.token_labels and self.head):
            return super().__call__(images, train)
        x = self.patch_embed(images, train)
        mixed = mixing_box(train.key(), self.grid) if self.config.mix_token else jnp.zeros(self.grid, bool)
        x = jnp.where(_enlarged(mixed, x.shape[1:3])[..., None], x[::-1], x)
        x = self._tokens(x, train)
        tokens = self.aux_head(x[:, 1:]).reshape(x.shape[0], *self.grid, -1)
        tokens = jnp.where(mixed[..., None], tokens[::-1], tokens)  # each patch's logits to the image it came from
        logits = self.head(dropout(x[:, 0], self.config.drop_rate, train))
        return TokenLogits(logits, tokens, 1 - mixed.mean(dtype=jnp.float32))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1 + N, C], normalised.

        pyramid=True gives the maps after the stages in `out_indices` instead, not normalised: [B, H/8, W/8, C] of the
        outlookers, [B, H/16, W/16, C] of the transformers.
        """
        self.check_size(images)
        x = self.patch_embed(images, train)
        if pyramid:
            maps = self._maps(x, train)
            return [maps[i] for i in self.indices(out_indices)]
        return self._tokens(x, train)

    def _maps(self, x, train):
        """The map after each stage."""
        maps = [self.stages[0](x, train)]
        x = self.downsample(maps[0]) + self.pos_embed[...].astype(x.dtype)
        shape = x.shape
        x = dropout(x, self.config.pos_drop_rate, train).reshape(shape[0], -1, shape[-1])
        for stage in self.stages[1:]:
            x = stage(x, train)
            maps.append(x.reshape(shape))
        return maps

    def _tokens(self, x, train):
        """The stem's map -> class token and patches [B, 1 + N, C], normalised."""
        x = self._maps(x, train)[-1]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        token = self.post_network(token, train, x)
        return self.norm(jnp.concatenate([token, x], axis=1))

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or the class token [B, C] without a head."""
        token = dropout(x[:, 0], self.config.drop_rate, train)
        if self.head is None:
            return token
        return self.head(token) + 0.5 * self.aux_head(dropout(x, self.config.drop_rate, train)[:, 1:]).max(axis=1)

    def dense_logits(self, images):
        """The patches' own logits [B, h, w, num_classes], by the head that token labelling trains."""
        x = self.forward_features(images)[:, 1:]
        return self.aux_head(x).reshape(x.shape[0], *self.grid, -1)

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        if leaf != "pos_embed" or array.shape[1] != array.shape[2]:
            return array
        flat = array.reshape(1, -1, array.shape[-1])
        return resample_positions(flat, self.grid).reshape(1, *self.grid, array.shape[-1])

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        blocks = [(i, j) for i, depth in enumerate(self.config.depths) for j in range(depth)]
        stages = [(rf"^stages\.{i}\.{j}\.", n) for n, (i, j) in enumerate(blocks, 1)]
        last = len(blocks) + self.config.class_depth
        post = [(rf"^post_network\.{i}\.", len(blocks) + i + 1) for i in range(self.config.class_depth)]
        stem = [(r"^(patch_embed|downsample|pos_embed|cls_token)", 0)]
        return (*stem, *stages, *post, (r"", last + 1))


def mixing_box(key, grid):
    """Where images are mixed, bool [h, w]: a box of uniformly drawn area at a uniformly drawn place, cut at the border.

    MixToken (arXiv:2104.10858, section 3.3): CutMix's box (Yun et al., 2019, arXiv:1905.04899), on the tokens' grid.
    """
    area, *places = jax.random.split(key, 3)
    share = jnp.sqrt(jax.random.uniform(area))
    inside = []
    for place, n in zip(places, grid, strict=True):
        length, centre = (n * share).astype(int), jax.random.randint(place, (), 0, n)
        index = jnp.arange(n)
        inside.append((index >= centre - length // 2) & (index < centre + (length + 1) // 2))
    return inside[0][:, None] & inside[1]


def _enlarged(mask, size):
    """A mask of transformers' tokens [h, w] for outlookers' [H, W]; rows and columns left over are not mixed."""
    mask = mask.repeat(HALVED, axis=0).repeat(HALVED, axis=1)
    return jnp.pad(mask, [(0, n - have) for n, have in zip(size, mask.shape, strict=True)])


def _volo(name, fields, sizes):
    for img_size, (params, gmacs, crop_pct) in sizes.items():
        register(
            f"{name}_{img_size}", VOLO, VOLOConfig(img_size=img_size, **fields),
            params=params, gmacs=gmacs, paper="2106.13112", licence="apache-2.0", tags=("sail_in1k",),
            crop_pct=crop_pct,
        )  # fmt: skip


_D2 = dict(embed_dims=(256, 512, 512, 512), num_heads=(8, 16, 16, 16))
_D4 = dict(embed_dims=(384, 768, 768, 768), num_heads=(12, 16, 16, 16))

_volo("volo_d1", {}, {224: (26_632_040, 6.94, 0.96), 384: (26_777_960, 22.75, 1.0)})
_volo("volo_d2", {**_D2, "depths": (6, 4, 10, 4)}, {224: (58_678_336, 14.34, 0.96), 384: (58_872_896, 46.17, 1.0)})
_volo("volo_d3", {**_D2, "depths": (8, 8, 16, 4)}, {224: (86_325_072, 20.78, 0.96), 448: (86_626_128, 96.33, 1.0)})
_volo("volo_d4", {**_D4, "depths": (8, 8, 16, 4)}, {224: (192_961_520, 44.34, 0.96), 448: (193_413_104, 197.13, 1.15)})
_volo(
    "volo_d5",
    {**_D4, "depths": (12, 12, 20, 4), "mlp_ratio": 4.0, "stem_dim": 128},
    {224: (295_455_584, 72.40, 0.96), 448: (295_907_168, 315.06, 1.15), 512: (296_091_488, 425.09, 1.15)},
)
