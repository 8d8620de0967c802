"""MaxViT: Multi-Axis Vision Transformer (Tu et al., 2022, arXiv:2204.01697).

Every block looks three ways: a convolution (MBConv with squeeze-and-excitation) for neighbours, attention inside the
windows of a map, and attention over a grid of tokens spread evenly over it, so that each sees the whole map at linear
cost. Official repository: google-research/maxvit; compared here with timm's, to which its weights were ported.

The `_tf_` variants are the paper's: as in the released code, TensorFlow's padding, the tanh GELU and a hidden layer
before the classifier. The `_rw_` variants are timm's own, with SiLU, symmetric padding and narrower expansions (of
a block's input, not its output); `_rmlp_` says that a small network makes the relative position bias.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.kernels import window_attention
from vision_jax.layers.attention import QKV, HeadsFirstQKV
from vision_jax.layers.block import Block
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear
from vision_jax.layers.mbconv import PreNormMBConv
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import BatchNorm, LayerNorm
from vision_jax.layers.relative_bias import RelativeBias, RelativeBiasMap, RelativeBiasMlp
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages, stage_groups
from vision_jax.parameters import Normal, kaiming_normal, torch_default, xavier_uniform
from vision_jax.registry import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, check, register

POSITIONS = {"map": RelativeBiasMap, "table": RelativeBias, "mlp": RelativeBiasMlp}


@dataclasses.dataclass(frozen=True)
class MaxViTConfig(ModelConfig):
    """A MaxViT.

    `window_size` (P, and G of the grid) is a 32nd of the image if None; `tf` chooses the released code's paddings,
    activations and epsilons; `position`: "map" or "table", learned for each offset, or "mlp", a network of the offset
    with dropout at `position_drop_rate` in its hidden layer. `expand_output`: MBConv's inner channels are four times
    its output's, else its input's; `se_ratio` is the squeezed channels' share of the output's, else of the inner ones'.
    """

    depths: tuple = (2, 2, 5, 2)
    embed_dims: tuple = (64, 128, 256, 512)
    stem_dims: tuple = (64, 64)
    head_dim: int = 32
    head_hidden: int | None = None
    window_size: int | tuple | None = None
    tf: bool = True
    expand_output: bool = True
    se_ratio: float = 0.25
    position: str = "map"
    position_drop_rate: float = 0.125
    layer_scale_init: float | None = None

    def __post_init__(self):
        check_stages(self, "embed_dims")
        check(self.position in POSITIONS, f"position={self.position!r}: one of {', '.join(map(repr, POSITIONS))}")
        for dim in self.embed_dims:
            check(
                dim % self.head_dim == 0, f"embed_dims={self.embed_dims} must be multiples of head_dim={self.head_dim}"
            )
        for size, window in zip(pair(self.img_size), self.window, strict=True):
            maps = [-(-size // 2 ** (i + 2)) for i in range(len(self.depths))]
            check(
                window > 0 and all(n % window == 0 for n in maps),
                f"img_size={self.img_size} gives maps of {maps} tokens, not multiples of the window of {window}; "
                f"{max(round(size / 32), 1) * 32} with window_size=None would do",
            )

    @property
    def window(self):
        """(height, width) of a window and of the grid, in tokens."""
        return pair(self.window_size) if self.window_size else tuple(size // 32 for size in pair(self.img_size))

    @property
    def act(self):
        """The convolutions' activation."""
        return gelu_tanh if self.tf else jax.nn.silu


gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


class PartitionAttention(nnx.Module):
    """Self-attention inside windows or over the grid, with relative position bias: [B, H, W, C] -> [B, H, W, C].

    Section 3.2: windows of P x P neighbouring tokens, or of G x G tokens H/G and W/G apart.
    """

    def __init__(self, c, dim, *, grid):
        self.window_size, self.grid = c.window, grid
        heads, kw = dim // c.head_dim, dict(init=xavier_uniform, dtype=c.dtype)
        self.qkv = (QKV if c.tf else HeadsFirstQKV)(dim, heads, c.head_dim, **kw)
        network = dict(drop=c.position_drop_rate, dtype=c.dtype) if c.position == "mlp" else {}
        self.rel_pos = POSITIONS[c.position](heads, c.window, **network)
        self.proj = Linear(dim, dim, **kw)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        apart = [n // w if self.grid else 1 for n, w in zip(x.shape[1:3], self.window_size, strict=True)]
        out = window_attention(q, k, v, window_size=self.window_size, dilation=apart, bias=self.rel_pos(train))
        return self.proj(out.reshape(x.shape))


class MaxViTBlock(nnx.Module):
    """Convolution, window attention, grid attention: [B, H, W, din] -> [B, H/stride, W/stride, dim] (figure 2)."""

    def __init__(self, c, din, dim, stride):
        hidden = 4 * (dim if c.expand_output else din)
        self.conv = PreNormMBConv(
            din, dim, hidden=hidden, squeezed=int(c.se_ratio * (dim if c.expand_output else hidden)), stride=stride,
            act=c.act, epsilon=1e-3 if c.tf else 1e-5, padding="same" if c.tf else None, bias=c.tf, dtype=c.dtype,
        )  # fmt: skip
        norm = functools.partial(LayerNorm, epsilon=1e-5 if c.tf else 1e-6, dtype=c.dtype)
        linear = functools.partial(Linear, init=xavier_uniform, bias_init=Normal(1e-6))

        def block(grid):
            attn = PartitionAttention(c, dim, grid=grid)
            mlp = Mlp(dim, 4 * dim, act=gelu_tanh if c.tf else gelu, linear=linear, dtype=c.dtype)
            return Block(dim, attn=attn, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, dtype=c.dtype)

        self.attn_block, self.attn_grid = block(grid=False), block(grid=True)

    def __call__(self, x, train=None):
        return self.attn_grid(self.attn_block(self.conv(x, train), train), train)


class Stem(nnx.Module):
    """Two 3x3 convolutions, [B, H, W, C] -> [B, H/2, W/2, dim]."""

    def __init__(self, c):
        kw = dict(bias=c.tf, init=kaiming_normal, dtype=c.dtype)
        self.act = c.act
        self.conv1 = Conv(c.in_chans, c.stem_dims[0], 3, stride=2, padding="same" if c.tf else None, **kw)
        self.norm1 = BatchNorm(c.stem_dims[0], epsilon=1e-3 if c.tf else 1e-5, dtype=c.dtype)
        self.conv2 = Conv(*c.stem_dims, 3, **kw)

    def __call__(self, x, train=None):
        return self.conv2(self.act(self.norm1(self.conv1(x), train)))


class Stage(nnx.Module):
    """Blocks, the first of which halves the map; it is unlike the others, so they are not scanned."""

    def __init__(self, c, din, dim, rates):
        self.blocks = Stack(lambda i: MaxViTBlock(c, dim if i else din, dim, 1 if i else 2), rates, remat=c.remat)

    def __call__(self, x, train=None):
        return self.blocks(x, train)


class MaxViT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    # what is added to every key adds one number to all scores of a query, and so does the offsets' last bias
    inert = (r"attn\.qkv\.bias\[1\]$", r"rel_pos\.mlp\.fc2\.bias$")

    def __init__(self, config):
        c = self.config = config
        self.stem = Stem(c)
        rates, dims = linear_rates(c.drop_path_rate, c.depths), (c.stem_dims[-1], *c.embed_dims)
        self.stages = nnx.List([Stage(c, dims[i], dims[i + 1], rates[i]) for i in range(len(c.depths))])
        norm = functools.partial(LayerNorm, epsilon=1e-5 if c.tf else 1e-6, dtype=c.dtype)
        linear = functools.partial(Linear, init=torch_default, bias_init=torch_default)
        self.norm = None if c.head_hidden else norm(dims[-1])
        self.head = PooledHead(
            dims[-1], c.num_classes, norm=norm if c.head_hidden else None, hidden=c.head_hidden, act=jnp.tanh,
            drop=c.drop_rate, linear=linear, classifier=linear, dtype=c.dtype,
        )  # fmt: skip
        stages = (FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))
        self.feature_info = (FeatureInfo("stem", c.stem_dims[-1], 2), *stages)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead, not normalised: after the stem and after each stage.
        """
        x = self.stem(images, train)
        maps = [x]
        for stage in self.stages:
            x = stage(x, train)
            maps.append(x)
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        return self.norm(x) if self.norm else x

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a classifier."""
        return self.head(x, train)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^stem\.")


_SMALL, _LARGE = (2, 2, 5, 2), (2, 6, 14, 2)
_FINE_TUNED = {"in1k": {}, "in21k_ft_in1k": {}}
_IMAGENET = {"in1k": dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)}
_PRETRAINED = {"in21k": dict(num_classes=21843)}


def _maxvit(name, size, depths, width, params, gmacs, tags, *, crop_pct=None, **fields):
    register(
        f"maxvit_{name}_{size}", MaxViT,
        MaxViTConfig(img_size=size, depths=depths, embed_dims=tuple(width * 2**i for i in range(4)), **fields),
        params=params, gmacs=gmacs, paper="2204.01697", licence="apache-2.0", tags=tags,
        mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=crop_pct or (0.95 if size < 384 else 1.0),
    )  # fmt: skip


def _paper(name, size, depths, width, params, gmacs, tags, stem=64, **fields):
    stem = dict(stem_dims=(stem, stem), head_hidden=8 * width)
    _maxvit(f"{name}_tf", size, depths, width, params, gmacs, tags, **stem, **fields)


_paper("tiny", 224, _SMALL, 64, 30_916_528, 5.60, _IMAGENET)
_paper("tiny", 384, _SMALL, 64, 30_977_008, 17.53, ("in1k",))
_paper("tiny", 512, _SMALL, 64, 31_049_584, 33.49, ("in1k",))
_paper("small", 224, _SMALL, 96, 68_927_956, 11.66, _IMAGENET)
_paper("small", 384, _SMALL, 96, 69_018_676, 35.87, ("in1k",))
_paper("small", 512, _SMALL, 96, 69_127_540, 67.26, ("in1k",))
_paper("base", 224, _LARGE, 96, 119_467_708, 24.04, {**_IMAGENET, **_PRETRAINED})
_paper("base", 384, _LARGE, 96, 119_653_468, 73.80, _FINE_TUNED)
_paper("base", 512, _LARGE, 96, 119_876_380, 138.02, _FINE_TUNED)
_paper("large", 224, _LARGE, 128, 211_785_560, 43.68, {**_IMAGENET, **_PRETRAINED}, stem=128)
_paper("large", 384, _LARGE, 128, 212_033_240, 132.55, _FINE_TUNED, stem=128)
_paper("large", 512, _LARGE, 128, 212_330_456, 244.75, _FINE_TUNED, stem=128)
_paper("xlarge", 224, _LARGE, 192, 506_987_643, 97.52, _PRETRAINED, stem=192, num_classes=21843)
_paper("xlarge", 384, _LARGE, 192, 475_323_472, 292.78, ("in21k_ft_in1k",), stem=192)
_paper("xlarge", 512, _LARGE, 192, 475_769_296, 534.14, ("in21k_ft_in1k",), stem=192)

_RW = dict(tf=False, expand_output=False, se_ratio=1 / 16, position="table")
_RMLP = dict(_RW, position="mlp")
_BASE = dict(_RMLP, stem_dims=(32, 64), head_hidden=768)
_12K = {"sw_in12k_ft_in1k": {}, "sw_in12k": dict(num_classes=11821)}
_maxvit("nano_rw", 256, (1, 2, 3, 1), 64, 15_451_148, 4.46, ("sw_in1k",), stem_dims=(32, 64), **_RW)
_maxvit("tiny_rw", 224, _SMALL, 64, 29_057_312, 5.11, ("sw_in1k",), stem_dims=(32, 64), **_RW)
_maxvit("rmlp_pico_rw", 256, _SMALL, 32, 7_515_980, 1.85, ("sw_in1k",), stem_dims=(24, 32), **_RMLP)
_maxvit("rmlp_nano_rw", 256, (1, 2, 3, 1), 64, 15_501_452, 4.47, ("sw_in1k",), stem_dims=(32, 64), **_RMLP)
_maxvit("rmlp_tiny_rw", 256, _SMALL, 64, 29_148_896, 6.77, ("sw_in1k",), stem_dims=(32, 64), **_RMLP)
_maxvit(
    "rmlp_small_rw", 224, _SMALL, 96, 64_895_044, 10.75, ("sw_in1k",), crop_pct=0.9, stem_dims=(32, 64),
    layer_scale_init=1e-6, **_RMLP,
)  # fmt: skip
_maxvit("rmlp_base_rw", 224, _LARGE, 96, 116_135_788, 23.15, _12K, **_BASE)
_maxvit("rmlp_base_rw", 384, _LARGE, 96, 116_135_788, 70.97, ("sw_in12k_ft_in1k",), **_BASE)
