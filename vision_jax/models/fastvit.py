"""FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization (Vasu et al., 2023, arXiv:2303.14189).

Convolutions throughout, attention in the last stages of some. Shortcuts cost memory traffic: the token mixer is a
depthwise convolution whose shortcut, scale and norms `reparameterize()` merges away, as it does the branches of
different kernel sizes that stem, downsamplings and the last convolution are trained with (MobileOne: arXiv:2206.04040).
The `mci` variants are the image towers of MobileCLIP (arXiv:2311.17049). Official repository: apple/ml-fastvit;
compared here with timm's, to which its weights were ported.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.layers.attention import Attention
from vision_jax.layers.block import MapBlock
from vision_jax.layers.channels import round_channels
from vision_jax.layers.conditional_position import ConditionalPosition
from vision_jax.layers.conv import Conv
from vision_jax.layers.conv_norm import ConvNorm, add_to_middle, affine
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import PointwiseConv
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import BatchNorm, LayerNorm, normalise
from vision_jax.layers.scale import ChannelLayerScale
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import torch_default, trunc_normal
from vision_jax.registry import check, register

HEAD_DIM = 32


@dataclasses.dataclass(frozen=True)
class FastViTConfig(ModelConfig):
    """A FastViT; a number a stage for `depths`, `embed_dims`, `attend` and `squeeze`.

    `attend`: whether the stage's blocks have attention, after positions; `squeeze`: whether the way down to it has
    squeeze-and-excitation. `down_act`: an activation there; `stem_scale`: 1x1 branches in the stem; `layer_norm`: the
    norm before attention, else a batch norm.
    """

    img_size: int | tuple = 256
    depths: tuple = (2, 2, 6, 2)
    embed_dims: tuple = (64, 128, 256, 512)
    mlp_ratio: float = 4.0
    attend: tuple = (False, False, False, False)
    squeeze: tuple = (False, False, False, False)
    down_act: bool = False
    stem_scale: bool = True
    layer_norm: bool = False
    layer_scale_init: float = 1e-5
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "attend", "squeeze")
        for dim, attends in zip(self.embed_dims, self.attend, strict=True):
            check(not attends or dim % HEAD_DIM == 0, f"embed_dims={self.embed_dims}: attention needs multiples of 32")
        check(not self.attend[0] and not self.squeeze[0], "attend, squeeze: not in the first stage")


class BranchConv(nnx.Module):
    """act(se(sum of branches)), [B, H, W, din] -> [B, H/stride, W/stride, dout].

    The branches, each with a batch norm, are a convolution, one of a smaller kernel, and the input itself where it has
    the shape of the result and `shortcut` holds (MobileOne: arXiv:2206.04040, figure 3).

    Args:
      din, dout, kernel_size, stride, groups: of the convolution.
      small: kernel size of the smaller one; None for none.
      shortcut: whether the input is a branch where it can be.
      squeezed: hidden channels of the squeeze-and-excitation; 0 for none.
      act: activation, or None.
      dtype: dtype of the computation.
    """

    def __init__(
        self, din, dout, kernel_size, *, stride=1, groups=1, small=None, shortcut=True, squeezed=0, act=gelu, dtype
    ):
        self.act, kw = act, dict(stride=stride, groups=groups, dtype=dtype)
        self.conv = ConvNorm(din, dout, kernel_size, **kw)
        self.small = ConvNorm(din, dout, small, **kw) if small else None
        self.identity = BatchNorm(din, dtype=dtype) if shortcut and din == dout and stride == 1 else None
        self.se = SqueezeExcite(dout, squeezed, dtype=dtype) if squeezed else None

    def __call__(self, x, train=None):
        y = self.conv(x, train)
        y = y + self.small(x, train) if self.small else y
        y = y + self.identity(x, train) if self.identity else y
        y = self.se(y) if self.se else y
        return self.act(y) if self.act else y

    def reparameterize(self):
        """Leaves one convolution."""
        self.conv.reparameterize()
        conv = self.conv.conv
        if self.small:
            self.small.reparameterize()
            kernel, small = conv.kernel[...], self.small.conv
            pad = (kernel.shape[-3] - small.kernel.shape[-3]) // 2
            pads = [(0, 0)] * (kernel.ndim - 4) + [(pad, pad)] * 2 + [(0, 0)] * 2
            conv.kernel.set_value(kernel + jnp.pad(small.kernel[...], pads))
            conv.bias.set_value(conv.bias[...] + small.bias[...])
        if self.identity:
            factor, offset = affine(self.identity)
            if isinstance(conv, Conv):
                add_to_middle(conv, _over_kernel(factor))
            else:
                conv.kernel.set_value(conv.kernel[...] + np.eye(factor.shape[-1]) * factor[..., None, :])
            conv.bias.set_value(conv.bias[...] + offset)
        self.small = self.identity = None


def _over_kernel(values):
    """[..., C] -> [..., 1, 1, 1, C]."""
    return values[..., None, None, None, :]


class RepMixer(nnx.Module):
    """x + scale(branches of depthwise convolutions(x) - norm(x)), [B, H, W, C] -> [B, H, W, C] (equation 2)."""

    def __init__(self, dim, layer_scale, *, dtype):
        self.norm = BatchNorm(dim, dtype=dtype)
        self.mixer = BranchConv(dim, dim, 3, groups=dim, small=1, act=None, dtype=dtype)
        self.ls = ChannelLayerScale(dim, layer_scale, dtype=dtype)

    def __call__(self, x, train=None):
        y = self.mixer(x, train)
        return x + self.ls(y - self.norm(x, train)) if self.norm else y

    def reparameterize(self):
        """Leaves one convolution."""
        if self.norm is None:
            return
        self.mixer.reparameterize()
        conv, scale, (factor, offset) = self.mixer.conv.conv, self.ls.gamma[...], affine(self.norm)
        conv.kernel.set_value(conv.kernel[...] * _over_kernel(scale))
        add_to_middle(conv, _over_kernel(1 - scale * factor))
        conv.bias.set_value((conv.bias[...] - offset) * scale)
        self.norm = self.ls = None


class ConvMlp(Mlp):
    """A 7x7 depthwise convolution with a batch norm, then an MLP: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, hidden, *, drop, dtype):
        super().__init__(dim, hidden, drop=drop, linear=PointwiseConv, dtype=dtype)
        self.conv = ConvNorm(dim, dim, 7, groups=dim, init=trunc_normal, dtype=dtype)

    def __call__(self, x, train=None):
        return super().__call__(self.conv(x, train), train)


class NormAttention(nnx.Module):
    """A norm, then attention among all pixels: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim, *, layer_norm, dtype):
        self.norm = LayerNorm(dim, epsilon=1e-5, dtype=dtype) if layer_norm else BatchNorm(dim, dtype=dtype)
        self.attn = Attention(dim, dim // HEAD_DIM, qkv_bias=False, dtype=dtype)

    def __call__(self, x, train=None):
        return self.attn(normalise(self.norm, x, train), train)


class FastViTBlock(MapBlock):
    """Attention or a `RepMixer`, then an MLP: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, c, stage):
        dim, kw = c.embed_dims[stage], dict(dtype=c.dtype)
        attn = NormAttention(dim, layer_norm=c.layer_norm, **kw) if c.attend[stage] else None
        mlp = ConvMlp(dim, int(dim * c.mlp_ratio), drop=c.proj_drop_rate, **kw)
        super().__init__(dim, attn=attn, mlp=mlp, layer_scale=c.layer_scale_init, scale=ChannelLayerScale, **kw)
        self.token_mixer = None if attn else RepMixer(dim, c.layer_scale_init, **kw)

    def __call__(self, x, train=None):
        return super().__call__(self.token_mixer(x, train) if self.token_mixer else x, train)


class MergedPosition(ConditionalPosition):
    """The same, whose shortcut can be merged."""

    merged = False

    def __call__(self, x):
        return self.proj(x) if self.merged else super().__call__(x)

    def reparameterize(self):
        """Leaves the convolution."""
        if not self.merged:
            add_to_middle(self.proj, 1)
            self.merged = True


class Downsample(nnx.Module):
    """A strided depthwise convolution of two branches, a pointwise one, and the next stage's positions.

    [B, H, W, din] -> [B, H/2, W/2, dout].
    """

    def __init__(self, c, stage):
        (din, dout), kw = c.embed_dims[stage - 1 : stage + 1], dict(dtype=c.dtype)
        squeezed = round_channels(dout / 4, limit=0) if c.squeeze[stage] else 0
        self.large = BranchConv(
            din, dout, 7, stride=2, groups=din, small=3, squeezed=squeezed, act=gelu if c.down_act else None, **kw
        )
        self.point = BranchConv(dout, dout, 1, **kw)
        conv = dict(init=torch_default, bias_init=torch_default)
        self.pos_emb = MergedPosition(dout, 7, **conv, **kw) if c.attend[stage] else None

    def __call__(self, x, train=None):
        x = self.point(self.large(x, train), train)
        return self.pos_emb(x) if self.pos_emb else x


_TIMM = (
    (r"\.downsample\.pos_emb\.proj\.", ".pos_emb.pos_enc."),
    (r"\.downsample\.large\.conv\.", ".downsample.proj.0.large_conv."),
    (r"\.downsample\.large\.small\.", ".downsample.proj.0.small_conv."),
    (r"\.downsample\.large\.", ".downsample.proj.0."),
    (r"\.downsample\.point\.", ".downsample.proj.1."),
    (r"\.small\.", ".conv_scale."),
    (r"^((stem\.\d|final_conv)\.|.*\.(mixer|proj\.1)\.)conv\.", r"\1conv_kxk.0."),
    (r"\.token_mixer\.norm\.", ".token_mixer.norm.identity."),
    (r"\.token_mixer\.ls\.", ".token_mixer.layer_scale."),
    (r"\.attn\.norm\.", ".norm."),
    (r"\.attn\.attn\.", ".token_mixer."),
)


class FastViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)

    @property
    def torch_names(self):
        """The renames of each dialect: a block has one scale or two."""
        stages = "|".join(str(i) for i, attends in enumerate(self.config.attend) if attends) or "none"
        two = (rf"^(stages\.({stages})\.blocks\.\d+)\.ls(\d)\.", r"\1.layer_scale_\3.")
        return {"timm": (*_TIMM, two, (r"\.ls2\.", ".layer_scale."))}

    def __init__(self, config):
        c = self.config = config
        dims, kw = c.embed_dims, dict(dtype=c.dtype)
        small = 1 if c.stem_scale else None
        self.stem = nnx.List([
            BranchConv(c.in_chans, dims[0], 3, stride=2, small=small, **kw),
            BranchConv(dims[0], dims[0], 3, stride=2, groups=dims[0], small=small, **kw),
            BranchConv(dims[0], dims[0], 1, **kw),
        ])  # fmt: skip
        stages = []
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            block = functools.partial(self._block, i)
            stages.append(
                Stage(Downsample(c, i) if i else None, Stack(block, rates, scan=c.scan_blocks, remat=c.remat))
            )
        self.stages, last = nnx.List(stages), 2 * dims[-1]
        self.final_conv = BranchConv(dims[-1], last, 3, groups=dims[-1], small=1, squeezed=round(last / 16), **kw)
        self.head = PooledHead(last, c.num_classes, drop=c.drop_rate, **kw)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(dims))

    def _block(self, stage, index):
        return FastViTBlock(self.config, stage)

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        x = images
        for conv in self.stem:
            x = conv(x, train)
        return x

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """As in `StagedModel`, the last map after a convolution that doubles its channels."""
        x = super().forward_features(images, train, pyramid, out_indices)
        return x if pyramid else self.final_conv(x, train)


def _fastvit(name, width, depths, params, gmacs, attending=0, tags=("apple_in1k", "apple_dist_in1k"), told=None, **f):
    n = len(depths)
    config = FastViTConfig(
        depths=depths, embed_dims=tuple(width * 2**i for i in range(n)),
        attend=tuple(i >= n - attending for i in range(n)), squeeze=f.pop("squeeze", (False,) * n), **f,
    )  # fmt: skip
    told = {"crop_pct": 0.9, "licence": "fastvit-license", **(told or {})}
    register(f"fastvit_{name}", FastViT, config, params=params, gmacs=gmacs, paper="2303.14189", tags=tags, **told)


_fastvit("t8", 48, (2, 2, 4, 2), 4_026_232, 0.7, mlp_ratio=3.0)
_fastvit("t12", 64, (2, 2, 6, 2), 7_553_704, 1.4, mlp_ratio=3.0)
_fastvit("s12", 64, (2, 2, 6, 2), 9_473_576, 1.8)
_fastvit("sa12", 64, (2, 2, 6, 2), 11_580_968, 1.9, attending=1)
_fastvit("sa24", 64, (4, 4, 12, 4), 21_554_216, 3.8, attending=1)
_fastvit("sa36", 64, (6, 6, 18, 6), 31_527_464, 5.6, attending=1)
_fastvit("ma36", 76, (6, 6, 18, 6), 44_068_004, 7.9, attending=1, told=dict(crop_pct=0.95))

# of MobileCLIP's towers nobody published multiply-adds alone: they are counted
_CLIP = dict(crop_pct=0.95, licence="apple-amlr", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_FIRST = dict(attending=1, told=_CLIP, mlp_ratio=3.0, squeeze=(False, False, True, True), down_act=True)
_MEANS = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
_SECOND = dict(attending=2, told=_CLIP | _MEANS, stem_scale=False, layer_norm=True, down_act=True, num_classes=768)
_BOTH = {"apple_mclip": {}, "apple_mclip2_dfndr2b": dict(crop_pct=1.0)}
_TWO = ("apple_mclip", "apple_mclip2_dfndr2b")
_fastvit("mci0", 64, (2, 6, 10, 2), 11_406_976, 2.39, tags=_BOTH, num_classes=512, **_FIRST)
_fastvit("mci1", 64, (4, 12, 20, 4), 21_541_632, 4.67, tags=_TWO[:1], num_classes=512, **_FIRST)
_fastvit("mci2", 80, (4, 12, 24, 4), 35_815_232, 7.85, tags=_TWO, num_classes=512, **_FIRST)
_fastvit("mci3", 96, (2, 12, 24, 4, 2), 125_235_648, 14.82, tags=_TWO[1:], **_SECOND)
_fastvit("mci4", 128, (2, 12, 24, 4, 4), 321_784_832, 27.77, tags=_TWO[1:], **_SECOND)
