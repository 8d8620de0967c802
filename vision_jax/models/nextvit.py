"""Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios (Li et al.,
2022, arXiv:2207.05501).

Made for TensorRT: batch norms and ReLU throughout, which `reparameterize()` merges into the layers beside them.
Convolution blocks mix tokens by a grouped convolution (multi-head convolutional attention); now and then a transformer
block lets three quarters of its channels attend to averaged keys, and a convolution makes the others from them.
Official repository: bytedance/Next-ViT; compared here with timm's, to which its weights were ported. As in the released
code the tokens are averaged in runs, row by row, not in squares.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.functional import tap
from vision_jax.layers.attention import KV, aggregate, attention_probabilities
from vision_jax.layers.conv_norm import ConvNorm, norm_before
from vision_jax.layers.drop import drop_path, dropout, linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import BatchNorm, normalise
from vision_jax.layers.pooling import avg_pool
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import trunc_normal
from vision_jax.registry import check, register

MIXED = 0.75  # the share of a transformer block's channels that attend, in the paper's r


@dataclasses.dataclass(frozen=True)
class NextViTConfig(ModelConfig):
    """A Next-ViT; a number a stage for all but `stem_dims` and `head_dim`.

    `embed_dims`, `mixed_dims`: channels of the convolution and of the transformer blocks; every `mixed_every`-th block
    of a stage is a transformer, 0 for none. `sr_ratios`: the keys are averages of sr^2 tokens. `head_dim`: channels of
    a head, and of a group of the grouped convolutions.
    """

    stem_dims: tuple = (64, 32, 64, 64)
    depths: tuple = (3, 4, 10, 3)
    embed_dims: tuple = (96, 192, 384, 768)
    mixed_dims: tuple = (0, 256, 512, 1024)
    mixed_every: tuple = (0, 4, 5, 3)
    sr_ratios: tuple = (8, 4, 2, 1)
    head_dim: int = 32
    attn_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0

    def __post_init__(self):
        check_stages(self, "embed_dims", "mixed_dims", "mixed_every", "sr_ratios")
        check(len(self.stem_dims) == 4, f"stem_dims={self.stem_dims}: one for each of four convolutions")
        widths = [*self.embed_dims, *(n for dim in self.mixed_dims for n in _parts(dim))]
        fits = all(n % self.head_dim == 0 for n in widths)
        message = f"embed_dims={self.embed_dims} and the parts {widths[len(self.embed_dims) :]} of mixed_dims"
        check(fits, f"{message} must be multiples of head_dim={self.head_dim}")

    def width(self, stage, index):
        """Channels of a block, and whether it is a transformer."""
        every = self.mixed_every[stage]
        mixed = every > 0 and (index + 1) % every == 0
        return (self.mixed_dims if mixed else self.embed_dims)[stage], mixed


def _parts(dim):
    """The channels of a transformer block that attend, the nearest multiple of 32 to three quarters; and the others."""
    attending = max(32, int(int(dim * MIXED) + 16) // 32 * 32) if dim else 0
    attending += 32 * (attending < 0.9 * int(dim * MIXED))
    return attending, dim - attending


class Projection(ConvNorm):
    """An average of 2x2 with `stride` 2, a 1x1 convolution, a batch norm: [B, H, W, din] -> [B, H/s, W/s, dout]."""

    def __init__(self, din, dout, stride, *, dtype):
        super().__init__(din, dout, init=trunc_normal, dtype=dtype)
        self.stride = stride

    def __call__(self, x, train=None):
        return super().__call__(avg_pool(x, 2, stride=2, ceil_mode=True) if self.stride == 2 else x, train)


def _projection(din, dout, stride, dtype):
    """None where nothing changes."""
    return Projection(din, dout, stride, dtype=dtype) if stride == 2 or din != dout else None


class ConvAttention(nnx.Module):
    """Multi-head convolutional attention: a grouped 3x3 convolution, norm, ReLU, projection (MHCA)."""

    def __init__(self, dim, head_dim, *, dtype):
        kw = dict(init=trunc_normal, dtype=dtype)
        self.conv = ConvNorm(dim, dim, 3, groups=dim // head_dim, act=jax.nn.relu, **kw)
        self.projection = PointwiseConv(dim, dim, bias=False, **kw)

    def __call__(self, x, train=None):
        return self.projection(self.conv(x, train))


class RunAttention(nnx.Module):
    """Attention of every token to the averages of `run` successive ones, [B, H, W, C] -> [B, H, W, C] (E-MHSA).

    Tokens that fill no run are left out. Raises: InputError for a map of fewer tokens.
    """

    def __init__(self, dim, head_dim, run, *, attn_drop, proj_drop, dtype):
        heads = dim // head_dim
        self.run, self.num_heads, self.attn_drop, self.proj_drop = run, heads, attn_drop, proj_drop
        self.q, self.kv = Linear(dim, dim, dtype=dtype), KV(dim, heads, head_dim, dtype=dtype)
        self.norm = BatchNorm(dim, dtype=dtype) if run > 1 else None
        self.proj = Linear(dim, dim, dtype=dtype)

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        tokens, count = x.reshape(B, H * W, C), H * W // self.run
        if not count:
            raise InputError(f"a map of {H} x {W} is below the {self.run} tokens of one average: give larger images")
        q = self.q(tokens).reshape(B, H * W, self.num_heads, -1)
        if self.run > 1:
            tokens = tokens[:, : count * self.run].reshape(B, count, self.run, C).mean(2)
        k, v = self.kv(normalise(self.norm, tokens, train))
        probabilities = tap(self, "probabilities", attention_probabilities(q, k))
        out = aggregate(dropout(probabilities, self.attn_drop, train), v)
        return dropout(self.proj(out.reshape(B, H, W, C)), self.proj_drop, train)


class ConvBlock(nnx.Module):
    """Convolutional attention and an MLP, [B, H, W, din] -> [B, H/stride, W/stride, dim] (NCB)."""

    def __init__(self, c, din, dim, stride):
        self.patch_embed = _projection(din, dim, stride, c.dtype)
        self.mhca = ConvAttention(dim, c.head_dim, dtype=c.dtype)
        self.norm, self.mlp = BatchNorm(dim, dtype=c.dtype), _mlp(c, dim, 3)

    def __call__(self, x, train=None):
        x = self.patch_embed(x, train) if self.patch_embed else x
        x = x + drop_path(tap(self, "mhca", self.mhca(x, train)), train)
        x = x + drop_path(tap(self, "mlp", self.mlp(normalise(self.norm, x, train), train)), train)
        return tap(self, "output", constrain_batch(x))

    def reparameterize(self):
        """Merges the norm before the MLP."""
        if self.norm:
            norm_before([self.norm], self.mlp.fc1)
            self.norm = None


class TransformerBlock(nnx.Module):
    """Attention, convolutional attention beside it, an MLP over both: [B, H, W, din] -> [B, H/s, W/s, dim].

    The paper's NTB. The drop-path rate is shared out between the two as the channels are.
    """

    def __init__(self, c, din, dim, stride, sr_ratio):
        (attending, others), kw = _parts(dim), dict(dtype=c.dtype)
        drops = dict(attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate)
        self.patch_embed = _projection(din, attending, stride, c.dtype)
        self.norm1 = BatchNorm(attending, **kw)
        self.attn = RunAttention(attending, c.head_dim, sr_ratio**2, **drops, **kw)
        self.projection = _projection(attending, others, 1, c.dtype)
        self.mhca = ConvAttention(others, c.head_dim, **kw)
        self.norm2, self.mlp = BatchNorm(dim, **kw), _mlp(c, dim, 2)

    def __call__(self, x, train=None):
        x = self.patch_embed(x, train) if self.patch_embed else x
        attended = tap(self, "attn", self.attn(normalise(self.norm1, x, train), train))
        x = x + drop_path(attended, train, MIXED)
        y = self.projection(x, train) if self.projection else x
        y = y + drop_path(tap(self, "mhca", self.mhca(y, train)), train, 1 - MIXED)
        x = jnp.concatenate([x, y], axis=-1)
        x = x + drop_path(tap(self, "mlp", self.mlp(normalise(self.norm2, x, train), train)), train)
        return tap(self, "output", constrain_batch(x))

    def reparameterize(self):
        """Merges the norms before the MLP and before the queries, keys and values; an average keeps what is linear."""
        if self.norm1:
            norm_before([self.norm1], self.attn.q)
            norm_before([self.norm1, self.attn.norm] if self.attn.norm else [self.norm1], self.attn.kv)
            norm_before([self.norm2], self.mlp.fc1)
            self.norm1 = self.norm2 = self.attn.norm = None


def _mlp(c, dim, ratio):
    return Mlp(dim, ratio * dim, act=jax.nn.relu, drop=c.proj_drop_rate, linear=PointwiseConv, dtype=c.dtype)


class NextViT(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    # what is added to every key adds one number to all scores of a query
    inert = (r"attn\.kv\.bias\[0\]$",)
    torch_names: ClassVar = {
        "timm": (
            (r"\.mhca\.conv\.conv\.", ".mhca.group_conv3x3."),
            (r"\.mhca\.conv\.bn\.", ".mhca.norm."),
            (r"\.bn\.", ".norm."),
            (r"\.attn\.kv\.", (".attn.k.", ".attn.v.")),
            (r"\.attn\.", ".e_mhsa."),
            (r"^norm_pre\.", "norm."),
        )
    }

    def __init__(self, config):
        c = self.config = config
        widths, strides = (c.in_chans, *c.stem_dims), (2, 1, 1, 2)
        kw = dict(act=jax.nn.relu, init=trunc_normal, dtype=c.dtype)
        self.stem = nnx.List([ConvNorm(widths[i], widths[i + 1], 3, stride=strides[i], **kw) for i in range(4)])
        stages, info, din = [], [], c.stem_dims[-1]
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            stages.append(Stage(None, Stack(functools.partial(self._block, i, din), rates, remat=c.remat)))
            din, _ = c.width(i, c.depths[i] - 1)
            info.append(FeatureInfo(f"stages.{i}", din, 4 * 2**i))
        self.stages, self.feature_info = nnx.List(stages), tuple(info)
        self.norm_pre = BatchNorm(din, dtype=c.dtype)
        self.head = PooledHead(din, c.num_classes, drop=c.drop_rate, dtype=c.dtype)

    def _block(self, stage, din, index):
        c, (dim, mixed) = self.config, self.config.width(stage, index)
        din, stride = (c.width(stage, index - 1)[0], 1) if index else (din, 2 if stage else 1)
        if mixed:
            return TransformerBlock(c, din, dim, stride, c.sr_ratios[stage])
        return ConvBlock(c, din, dim, stride)

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        x = images
        for conv in self.stem:
            x = conv(x, train)
        return x


_AT_384 = dict(img_size=384, crop_pct=1.0)
_TAGS = {"bd_in1k": {}, "bd_in1k_384": _AT_384, "bd_ssld_6m_in1k": {}, "bd_ssld_6m_in1k_384": _AT_384}


def _nextvit(name, depth, params, gmacs):
    register(
        f"nextvit_{name}", NextViT, NextViTConfig(depths=(3, 4, depth, 3)), params=params, gmacs=gmacs,
        paper="2207.05501", licence="apache-2.0", tags=_TAGS, crop_pct=0.95,
    )  # fmt: skip


_nextvit("small", 10, 31_763_368, 5.8)
_nextvit("base", 20, 44_818_856, 8.3)
_nextvit("large", 30, 57_874_344, 10.8)
