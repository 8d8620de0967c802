"""MobileViT and MobileViTv2 (Mehta & Rastegari, 2021, arXiv:2110.02178; 2022, arXiv:2206.02680).

Inverted bottlenecks, and in the later stages transformers in the place of convolutions: a map is unfolded into small
patches, and pixels at the same place of each patch attend to each other, so that patch and pixel order are kept and
weights few. In the second version self-attention is separable: every pixel adds its key to one context vector, weighed
by a single score, and every pixel's value is scaled by that vector, which is linear in the map's size. Official
repository: apple/ml-cvnets; compared here with timm's, to which its weights were ported.

Maps that patches do not tile are interpolated: in the first version, as in the released code, there and back; in the
second up, and they stay so.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import QKV, Attention
from vision_jax.layers.block import Block
from vision_jax.layers.bottleneck import Bottleneck
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conv_norm import ConvNorm
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.head import PooledHead
from vision_jax.layers.interpolate import bilinear
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, StagesModel, check_stages
from vision_jax.parameters import Normal, kaiming_normal, zeros
from vision_jax.registry import check, register

INIT = Normal(0.01)
_linear = functools.partial(Linear, init=INIT)
_pointwise = functools.partial(PointwiseConv, init=kaiming_normal, bias_init=zeros)


@dataclasses.dataclass(frozen=True)
class MobileViTConfig(ModelConfig):
    """A MobileViT; a number a stage for every tuple.

    `depths`: of a stage's inverted bottlenecks, of which the first of every stage but the first strides; their hidden
    channels are `expansion` times those they take. `transformer_depths`, `transformer_dims`: of the transformer that
    follows them, 0 for none. `separable`: the second version's. `head_dim`: channels of a last 1x1 convolution; 0 for
    none. `scan_blocks`: run a transformer's blocks under `jax.lax.scan`.
    """

    img_size: int | tuple = 256
    stem_dim: int = 16
    depths: tuple = (1, 3, 1, 1, 1)
    embed_dims: tuple = (32, 64, 96, 128, 160)
    expansion: float = 4.0
    transformer_depths: tuple = (0, 0, 2, 4, 3)
    transformer_dims: tuple = (0, 0, 144, 192, 240)
    num_heads: int = 4
    mlp_ratio: float = 2.0
    patch_size: int = 2
    separable: bool = False
    head_dim: int = 640
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "transformer_depths", "transformer_dims")
        for dim, depth in zip(self.transformer_dims, self.transformer_depths, strict=True):
            given = f"transformer_dims={self.transformer_dims}"
            check(dim or not depth, f"{given}: none where transformer_depths={self.transformer_depths} has blocks")
            fits = self.separable or dim % self.num_heads == 0
            check(fits, f"{given} must be multiples of num_heads={self.num_heads}")


class SeparableAttention(nnx.Module):
    """relu(v) * sum_n softmax(q)_n k_n over pixels at one place of all patches (arXiv:2206.02680, section 3.2).

    Patches [B, rows, p, columns, p, C] -> the same; `q` is one score a pixel.
    """

    def __init__(self, dim, *, dtype):
        self.qkv_proj, self.out_proj = _pointwise(dim, 1 + 2 * dim, dtype=dtype), _pointwise(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        query, keys, values = jnp.split(self.qkv_proj(x), [1, 1 + x.shape[-1]], axis=-1)
        scores = jax.nn.softmax(query.astype(jnp.promote_types(query.dtype, jnp.float32)), axis=(1, 3))
        scores = tap(self, "probabilities", scores).astype(keys.dtype)
        context = (keys * scores).sum((1, 3), keepdims=True)
        return self.out_proj(jax.nn.relu(values) * context)


def as_patches(x, patch_size):
    """A map [B, H, W, C] that patches tile -> [B, H/p, p, W/p, p, C]."""
    B, H, W, C = x.shape
    return x.reshape(B, H // patch_size, patch_size, W // patch_size, patch_size, C)


def tiled(size, patch_size):
    """The least (height, width) that patches tile, of at least `size`."""
    return tuple(-(-side // patch_size) * patch_size for side in size)


class MobileViTBlock(nnx.Module):
    """A transformer between convolutions: [B, H, W, dim] -> the same (arXiv:2110.02178, figure 1b).

    Args:
      c: the network's configuration.
      dim, inner: channels of the map and of the transformer.
      rates: drop-path rates of its blocks.
    """

    def __init__(self, c, dim, inner, rates):
        self.patch_size, kw = c.patch_size, dict(dtype=c.dtype)
        conv = functools.partial(ConvNorm, act=jax.nn.silu, init=kaiming_normal, **kw)
        self.conv_kxk = conv(dim, dim, 3)
        self.conv_1x1 = PointwiseConv(dim, inner, bias=False, init=kaiming_normal, **kw)
        norm = functools.partial(LayerNorm, epsilon=1e-5, **kw)

        def block(_):
            qkv = functools.partial(QKV, init=INIT)
            attn = Attention(inner, c.num_heads, qkv=qkv, linear=_linear, **kw)
            mlp = Mlp(inner, int(inner * c.mlp_ratio), act=jax.nn.silu, linear=_linear, **kw)
            return Block(inner, attn=attn, mlp=mlp, norm=norm, **kw)

        self.transformer, self.norm = Stack(block, rates, scan=c.scan_blocks), norm(inner)
        self.conv_proj = conv(inner, dim)
        self.conv_fusion = conv(2 * dim, dim, 3)

    def __call__(self, x, train=None):
        y, size = self.conv_1x1(self.conv_kxk(x, train)), x.shape[1:3]
        whole = tiled(size, self.patch_size)
        y = as_patches(y if size == whole else bilinear(y, whole), self.patch_size)
        B, rows, p, columns, _, C = y.shape
        y = y.transpose(0, 2, 4, 1, 3, 5).reshape(B * p * p, rows * columns, C)  # by places in a patch
        y = self.norm(self.transformer(y, train))
        y = y.reshape(B, p, p, rows, columns, C).transpose(0, 3, 1, 4, 2, 5).reshape(B, *whole, C)
        y = self.conv_proj(y if size == whole else bilinear(y, size), train)
        return tap(self, "output", constrain_batch(self.conv_fusion(jnp.concatenate([x, y], axis=-1), train)))


class MobileViTv2Block(nnx.Module):
    """The second version, with a depthwise convolution and no shortcut; arguments as above.

    [B, H, W, dim] -> the same, in height and width rounded up to whole patches.
    """

    def __init__(self, c, dim, inner, rates):
        self.patch_size, kw = c.patch_size, dict(dtype=c.dtype)
        conv = functools.partial(ConvNorm, init=kaiming_normal, **kw)
        self.conv_kxk = conv(dim, dim, 3, groups=dim, act=jax.nn.silu)
        self.conv_1x1 = PointwiseConv(dim, inner, bias=False, init=kaiming_normal, **kw)
        norm = functools.partial(GroupNorm, **kw)

        def block(_):
            mlp = Mlp(inner, int(inner * c.mlp_ratio), act=jax.nn.silu, linear=_pointwise, **kw)
            return Block(inner, attn=SeparableAttention(inner, **kw), mlp=mlp, norm=norm, **kw)

        self.transformer, self.norm = Stack(block, rates, scan=c.scan_blocks), norm(inner)
        self.conv_proj = conv(inner, dim)

    def __call__(self, x, train=None):
        whole = tiled(x.shape[1:3], self.patch_size)
        x = x if x.shape[1:3] == whole else bilinear(x, whole, align_corners=True)
        y = as_patches(self.conv_1x1(self.conv_kxk(x, train)), self.patch_size)
        y = self.norm(self.transformer(y, train))
        return tap(self, "output", constrain_batch(self.conv_proj(y.reshape(*x.shape[:3], -1), train)))


class MobileViT(StagesModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)
    inert = (r"attn\.qkv\.bias\[1\]$",)  # one number is added to all scores of a query

    def __init__(self, config):
        c = self.config = config
        conv = functools.partial(ConvNorm, act=jax.nn.silu, init=kaiming_normal, dtype=c.dtype)
        self.stem = conv(c.in_chans, c.stem_dim, 3, stride=2)
        dims = (c.stem_dim, *c.embed_dims)
        depths = [depth + bool(blocks) for depth, blocks in zip(c.depths, c.transformer_depths, strict=True)]
        stages = []
        for i, rates in enumerate(linear_rates(c.drop_path_rate, depths)):
            block = functools.partial(self._block, i, *dims[i : i + 2], rates)
            stages.append(Stack(block, rates, remat=c.remat))
        self.stages = nnx.List(stages)
        self.final_conv = conv(dims[-1], c.head_dim) if c.head_dim else None
        dim = c.head_dim or dims[-1]
        classifier = functools.partial(_linear, dtype=c.dtype)
        self.head = PooledHead(dim, c.num_classes, drop=c.drop_rate, classifier=classifier, dtype=c.dtype)
        info = [FeatureInfo(f"stages.{i}", d, 2 * 2**i) for i, d in enumerate(c.embed_dims)]
        if c.head_dim:
            info[-1] = info[-1]._replace(name="final_conv", channels=dim)
        self.feature_info = tuple(info)

    def _block(self, stage, din, dim, rates, index):
        c = self.config
        if index == c.depths[stage]:
            depth, inner = c.transformer_depths[stage], c.transformer_dims[stage]
            return (MobileViTv2Block if c.separable else MobileViTBlock)(c, dim, inner, (rates[index],) * depth)
        din, stride = (dim, 1) if index else (din, 2 if stage else 1)
        hidden = round_channels(din * c.expansion)
        how = dict(groups=hidden, act=jax.nn.silu, inverted=True, dtype=c.dtype)
        return Bottleneck(din, dim, hidden, stride=stride, **how)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps after the stages in `out_indices` instead, the last after the last convolution.
        """
        return self.finished(self.run_stages(self.stem(images, train), train), train, pyramid, out_indices)


def _mobilevit(name, params, gmacs, paper, tags=("cvnets_in1k",), crop_pct=0.9, **fields):
    register(
        name, MobileViT, MobileViTConfig(**fields), params=params, gmacs=gmacs, paper=paper, licence="cvnets-license",
        tags=tags, crop_pct=crop_pct, mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip


def _v1(name, embed_dims, transformer_dims, params, gmacs, **fields):
    dims = dict(embed_dims=embed_dims, transformer_dims=(0, 0, *transformer_dims))
    _mobilevit(f"mobilevit_{name}", params, gmacs, "2110.02178", **dims, **fields)


_v1("xxs", (16, 24, 48, 64, 80), (64, 80, 96), 1_272_024, 0.4, expansion=2.0, head_dim=320)
_v1("xs", (32, 48, 64, 80, 96), (96, 120, 144), 2_317_848, 1.0, head_dim=384)
_v1("s", (32, 64, 96, 128, 160), (144, 192, 240), 5_578_632, 2.0)

_22K = "cvnets_in22k_ft_in1k"
_FINE_TUNED = {"cvnets_in1k": {}, _22K: {}, f"{_22K}_384": dict(img_size=384, crop_pct=1.0)}


def _v2(percent, params, gmacs):
    dims = [dim * percent // 100 for dim in (64, 128, 256, 384, 512)]
    _mobilevit(
        f"mobilevitv2_{percent:03}", params, gmacs, "2206.02680", _FINE_TUNED if percent >= 150 else ("cvnets_in1k",),
        0.888, stem_dim=32 * percent // 100, depths=(1, 2, 1, 1, 1), embed_dims=tuple(dims), expansion=2.0,
        transformer_dims=(0, 0, *(dim // 2 for dim in dims[2:])), separable=True, head_dim=0,
    )  # fmt: skip


_v2(50, 1_370_593, 0.5)
_v2(75, 2_866_009, 1.0)
_v2(100, 4_901_841, 1.8)
_v2(125, 7_478_089, 2.8)
_v2(150, 10_594_753, 4.0)
_v2(175, 14_251_833, 5.5)
_v2(200, 18_449_329, 7.5)
