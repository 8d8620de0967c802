"""EfficientFormerV2: Rethinking Vision Transformers for MobileNet Size and Speed (Li et al., 2022, arXiv:2212.08059).

Found by searching size and speed together. Depthwise convolutions inside the MLPs take the place of pooling; attention
starts a stage earlier, there on a map of half the size, with heads that talk to each other and values that also pass a
depthwise convolution; the last downsampling is an attention too, whose queries are every second pixel. Official
repository: snap-research/EfficientFormer; compared here with timm's, to which its weights were ported. Those need a
third stage of even height and width; here the coarser map is enlarged to the stage's, whatever that is.
"""

import dataclasses

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import aggregate, attention_probabilities, attention_scores
from vision_jax.layers.block import MapBlock
from vision_jax.layers.conv import Conv
from vision_jax.layers.conv_norm import ConvNorm, ConvNormMlp
from vision_jax.layers.interpolate import bilinear
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import BatchNorm
from vision_jax.layers.relative_bias import DistanceBias
from vision_jax.layers.talking_heads import TalkingHeadsConv
from vision_jax.models.base import ModelConfig, check_stages
from vision_jax.models.efficientformer import EfficientFormer
from vision_jax.parameters import torch_default
from vision_jax.registry import check, register

COARSE, LAST = 2, 3  # the stage whose attention works on a map of half the size; the one that attention leads to


@dataclasses.dataclass(frozen=True)
class EfficientFormerV2Config(ModelConfig):
    """An EfficientFormerV2 of four stages.

    `num_vit`: how many blocks at the end of the last two stages have attention, of `num_heads` heads with queries and
    keys of `key_dim` channels (`down_key_dim` where it downsamples) and values of `value_ratio` times as many.
    `mlp_ratios`: a number a stage, or one for each block of the stage.
    """

    depths: tuple = (2, 2, 6, 4)
    embed_dims: tuple = (32, 48, 96, 176)
    num_vit: int = 2
    num_heads: int = 8
    key_dim: int = 32
    down_key_dim: int = 16
    value_ratio: int = 4
    mlp_ratios: tuple = (4, 4, 4, 4)
    layer_scale_init: float = 1e-5
    proj_drop_rate: float = 0.0

    def __post_init__(self):
        check_stages(self, "embed_dims", "mlp_ratios")
        check(len(self.depths) == 4, f"depths={self.depths}: one for each of four stages")
        for depth, ratios in zip(self.depths, self.mlp_ratios, strict=True):
            enough = not isinstance(ratios, tuple) or len(ratios) >= depth
            check(enough, f"mlp_ratios={self.mlp_ratios}: {ratios} has fewer than the stage's {depth} blocks")


class LocalGlobalQuery(nnx.Module):
    """Every second pixel and a depthwise convolution around it, projected: [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, din, dout, *, dtype):
        kw = dict(init=torch_default, bias_init=torch_default, dtype=dtype)
        self.local = Conv(din, din, 3, stride=2, groups=din, **kw)
        self.proj = ConvNorm(din, dout, bias=True, dtype=dtype)

    def __call__(self, x, train=None):
        return self.proj(self.local(x) + x[:, ::2, ::2], train)


class MapAttention(nnx.Module):
    """Attention among all pixels with biases for their distances and a local path for the values (MHSA).

    [B, H, W, din] -> [B, H, W, dout], or [B, H/2, W/2, dout] with `down`, whose heads do not talk to each other.

    Args:
      c: the config.
      din, dout: channels in and out.
      size: (H, W).
      key_dim: channels of each head's queries and keys.
      coarse: work on a map of half the size, which the result is enlarged from.
      down: ask at every second pixel only.
    """

    def __init__(self, c, din, dout, size, *, key_dim, coarse=False, down=False):
        heads, width, kw = c.num_heads, c.num_heads * c.value_ratio * key_dim, dict(bias=True, dtype=c.dtype)
        self.num_heads = heads
        self.stride_conv = ConvNorm(din, din, 3, stride=2, groups=din, **kw) if coarse else None
        size = tuple(-(-n // 2) for n in size) if coarse else size
        self.q = LocalGlobalQuery(din, heads * key_dim, dtype=c.dtype) if down else ConvNorm(din, heads * key_dim, **kw)
        self.k, self.v = ConvNorm(din, heads * key_dim, **kw), ConvNorm(din, width, **kw)
        self.v_local = ConvNorm(width, width, 3, stride=2 if down else 1, groups=width, **kw)
        self.bias = DistanceBias(heads, size, stride=2 if down else 1)
        kw = dict(init=torch_default, bias_init=torch_default, dtype=c.dtype)
        self.talking_head1, self.talking_head2 = (
            None if down else TalkingHeadsConv(heads, heads, **kw) for _ in range(2)
        )
        self.proj = ConvNorm(width, dout, bias=True, dtype=c.dtype)

    def __call__(self, x, train=None):
        full, x = x.shape[1:3], self.stride_conv(x, train) if self.stride_conv else x
        q, k, values = self.q(x, train), self.k(x, train), self.v(x, train)
        B, H, W, _ = q.shape
        q, k, v = (y.reshape(B, -1, self.num_heads, y.shape[-1] // self.num_heads) for y in (q, k, values))
        if self.talking_head1:
            scores = self.talking_head1(attention_scores(q, k) + self.bias())
            probabilities = self.talking_head2(jax.nn.softmax(scores, axis=-1))
        else:
            probabilities = attention_probabilities(q, k, bias=self.bias())
        y = aggregate(tap(self, "probabilities", probabilities), v)
        y = y.reshape(B, H, W, -1) + self.v_local(values, train)
        return self.proj(gelu(bilinear(y, full) if self.stride_conv else y), train)


class Downsample(nnx.Module):
    """A convolution of stride 2, attention beside it (dual-path): [B, H, W, din] -> [B, H/2, W/2, dout]."""

    def __init__(self, conv, attn):
        self.conv, self.attn = conv, attn

    def __call__(self, x, train=None):
        y = self.conv(x, train)
        return y + self.attn(x, train) if self.attn else y


class EfficientFormerV2(EfficientFormer):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]; a pair of them, of the two heads, while training."""

    # what is added to every key adds one number to all scores of a query
    inert = (r"\.k\.(conv\.bias|bn\.(bias|mean))$", r"\.talking_head1\.bias$")
    act = staticmethod(gelu)

    @property
    def torch_names(self):
        """The renames of each dialect."""
        return {
            "timm": (
                (r"^stem\.(\d)\.", lambda match: f"stem.conv{int(match[1]) + 1}."),
                (r"^norm_pre\.", "norm."),
                (r"\.attn\.bias\.", ".attn."),
                (r"(blocks\.\d+)\.attn\.", r"\1.token_mixer."),
            )
        }

    def _norm(self, dim):
        return BatchNorm(dim, dtype=self.config.dtype)

    def _downsample(self, stage, **kw):
        c, (din, dout) = self.config, self.config.embed_dims[stage - 1 : stage + 1]
        attn = None
        if stage >= LAST:
            attn = MapAttention(c, din, dout, self._size(stage - 1), key_dim=c.down_key_dim, down=True)
        return Downsample(ConvNorm(din, dout, 3, **kw), attn)

    def _block(self, stage, index):
        c, dim, ratios = self.config, self.config.embed_dims[stage], self.config.mlp_ratios[stage]
        attn = None
        if stage >= COARSE and index >= c.depths[stage] - c.num_vit:
            attn = MapAttention(c, dim, dim, self._size(stage), key_dim=c.key_dim, coarse=stage == COARSE)
        hidden = int(dim * (ratios[index] if isinstance(ratios, tuple) else ratios))
        kw = dict(act=gelu, depthwise=True, drop=c.proj_drop_rate, bias=True, dtype=c.dtype)
        mlp = ConvNormMlp(dim, hidden, **kw)
        return MapBlock(dim, attn=attn, mlp=mlp, layer_scale=c.layer_scale_init, dtype=c.dtype)

    def torch_buffers(self):
        """None: the reference computes its tables."""
        return {}


def _efficientformer_v2(name, depths, embed_dims, num_vit, ratios, params, gmacs):
    register(
        f"efficientformerv2_{name}", EfficientFormerV2,
        EfficientFormerV2Config(depths=depths, embed_dims=embed_dims, num_vit=num_vit, mlp_ratios=(4, 4, *ratios)),
        params=params, gmacs=gmacs, paper="2212.08059", licence="apache-2.0", tags=("snap_dist_in1k",), crop_pct=0.95,
    )  # fmt: skip


def _ratios(fours, threes, last_fours):
    """Blocks whose MLPs are four times as wide, then three times, then four times again."""
    return (4,) * fours + (3,) * threes + (4,) * last_fours


# fmt: off
_efficientformer_v2("s0", (2, 2, 6, 4), (32, 48, 96, 176), 2, (_ratios(1, 3, 2), _ratios(1, 2, 1)), 3_600_256, 0.4)
_efficientformer_v2("s1", (3, 3, 9, 6), (32, 48, 120, 224), 2, (_ratios(2, 4, 3), _ratios(2, 2, 2)), 6_185_560, 0.65)
_efficientformer_v2("s2", (4, 4, 12, 8), (32, 64, 144, 288), 4, (_ratios(2, 6, 4), _ratios(2, 4, 2)), 12_710_112, 1.25)
_efficientformer_v2("l", (5, 5, 15, 10), (40, 80, 192, 384), 6, (_ratios(4, 7, 4), _ratios(3, 4, 3)), 26_322_288, 2.56)
# fmt: on
