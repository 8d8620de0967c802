"""EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture (Maaz et al., 2022, arXiv:2206.10589).

ConvNeXt's blocks with kernels that grow from stage to stage, and at the end of the later stages a split depthwise
transpose attention: groups of channels pass 3x3 convolutions one after the other, each added to the next (Res2Net),
then attend to each other across the map (XCiT's cross-covariance attention), which is linear in its size. Official
repository: mmaaz60/EdgeNeXt; compared here with timm's, to which its weights were ported, and whose own `small_rw`
halves the map within the blocks.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.channel_attention import ChannelAttention
from vision_jax.layers.conv import Conv
from vision_jax.layers.convnext_block import ConvNeXtBlock
from vision_jax.layers.downsample import DOWN_IN_SEQUENCE, STEM_IN_SEQUENCE, Downsample
from vision_jax.layers.drop import drop_path, linear_rates
from vision_jax.layers.fourier_positions import FourierPositions
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.scale import LayerScale
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.parameters import Normal
from vision_jax.registry import check, register

INIT = Normal(0.02, limit=0.04)  # timm's trunc_normal_tf_, cut at two deviations
_linear = functools.partial(Linear, init=INIT)


@dataclasses.dataclass(frozen=True)
class EdgeNeXtConfig(ModelConfig):
    """An EdgeNeXt; a number a stage for every tuple.

    `global_depths`: how many blocks at the end of a stage have attention, with `num_heads` groups of channels, after
    convolutions of `scales` groups, one of which passes them by; `positions`: whether they add positions. `overlap`:
    patches of the stem overlap, and the first block of a stage halves the map (timm's own).
    """

    img_size: int | tuple = 256
    depths: tuple = (3, 3, 9, 3)
    embed_dims: tuple = (48, 96, 160, 304)
    global_depths: tuple = (0, 1, 1, 1)
    num_heads: tuple = (8, 8, 8, 8)
    kernel_sizes: tuple = (3, 5, 7, 9)
    scales: tuple = (2, 2, 3, 4)
    positions: tuple = (False, True, False, False)
    mlp_ratio: float = 4.0
    layer_scale_init: float = 1e-6
    overlap: bool = False
    conv_bias: bool = True

    def __post_init__(self):
        check_stages(self, "embed_dims", "global_depths", "num_heads", "kernel_sizes", "scales", "positions")
        for depth, attending in zip(self.depths, self.global_depths, strict=True):
            check(0 <= attending <= depth, f"global_depths={self.global_depths}: 0 to depths={self.depths}")
        for dim, n in zip(self.embed_dims, self.scales, strict=True):
            enough = n > 1 and -(-dim // n) * (n - 1) < dim
            check(enough, f"scales={self.scales}: 2 or more, each with channels of embed_dims={self.embed_dims}")


class SplitAttentionBlock(nnx.Module):
    """Convolutions of split channels, attention between channels, an MLP: [B, H, W, C] -> [B, H, W, C] (SDTA)."""

    def __init__(self, c, stage, *, mlp, norm):
        dim, scales, kw = c.embed_dims[stage], c.scales[stage], dict(init=INIT, dtype=c.dtype)
        self.width = width = -(-dim // scales)
        self.convs = nnx.List([Conv(width, width, 3, groups=width, bias=c.conv_bias, **kw) for _ in range(scales - 1)])
        self.pos_embd = FourierPositions(dim, **kw) if c.positions[stage] else None
        self.norm_xca, self.norm, self.mlp = norm(dim), norm(dim), mlp
        self.attn = ChannelAttention(dim, c.num_heads[stage], cosine=True, **kw)
        self.ls1, self.ls2 = (LayerScale(dim, c.layer_scale_init, dtype=c.dtype) for _ in range(2))

    def __call__(self, x, train=None):
        parts = jnp.split(x, [self.width * i for i in range(1, len(self.convs) + 1)], axis=-1)
        done = [self.convs[0](parts[0])]
        for conv, part in zip(self.convs[1:], parts[1:], strict=False):  # the last part passes
            done.append(conv(done[-1] + part))
        y = jnp.concatenate([*done, parts[-1]], axis=-1)
        y = constrain_batch(y + self.pos_embd(*y.shape[1:3]) if self.pos_embd else y)
        y = y + drop_path(self.ls1(tap(self, "attn", self.attn(self.norm_xca(y), train))), train)
        y = self.ls2(tap(self, "mlp", self.mlp(self.norm(y), train)))
        return tap(self, "output", constrain_batch(x + drop_path(y, train)))


class EdgeNeXt(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {
        "timm": (
            *STEM_IN_SEQUENCE,
            *DOWN_IN_SEQUENCE,
            (r"\.attn\.", ".xca."),
            (r"\.ls1\.gamma$", ".gamma_xca"),
            (r"\.ls2?\.gamma$", ".gamma"),
        )
    }

    def __init__(self, config):
        c = self.config = config
        norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        dims, kw = c.embed_dims, dict(norm=norm, bias=c.conv_bias, init=INIT, dtype=c.dtype)
        kernel, padding = (9, 4) if c.overlap else (4, 0)
        self.stem = Downsample(c.in_chans, dims[0], kernel, stride=4, padding=padding, norm_first=False, **kw)
        stages = []
        for i, rates in enumerate(linear_rates(c.drop_path_rate, c.depths)):
            apart = i and not c.overlap
            down = Downsample(dims[i - 1], dims[i], 2, stride=2, padding=0, **kw) if apart else None
            stages.append(Stage(down, Stack(functools.partial(self._block, i, norm), rates, remat=c.remat)))
        self.stages = nnx.List(stages)
        classifier = functools.partial(_linear, dtype=c.dtype)
        self.head = PooledHead(
            dims[-1], c.num_classes, norm=norm, drop=c.drop_rate, classifier=classifier, dtype=c.dtype
        )  # fmt: skip
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(dims))

    def _block(self, stage, norm, index):
        c, dim = self.config, self.config.embed_dims[stage]
        mlp = Mlp(dim, int(dim * c.mlp_ratio), linear=_linear, dtype=c.dtype)
        if index >= c.depths[stage] - c.global_depths[stage]:
            return SplitAttentionBlock(c, stage, mlp=mlp, norm=norm)
        down = dict(din=c.embed_dims[stage - 1], stride=2) if c.overlap and stage and not index else {}
        return ConvNeXtBlock(
            dim, c.kernel_sizes[stage], mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, bias=c.conv_bias,
            init=INIT, dtype=c.dtype, **down,
        )  # fmt: skip


def _edgenext(name, embed_dims, params, gmacs, tags, crop_pct, **fields):
    register(
        f"edgenext_{name}", EdgeNeXt, EdgeNeXtConfig(embed_dims=embed_dims, **fields), params=params, gmacs=gmacs,
        paper="2206.10589", licence="mit", tags=tags, crop_pct=crop_pct,
    )  # fmt: skip


_FOUR = dict(num_heads=(4, 4, 4, 4))
_edgenext("xx_small", (24, 48, 88, 168), 1_327_216, 0.26, ("in1k",), 0.9, depths=(2, 2, 6, 2), **_FOUR)
_edgenext("x_small", (32, 64, 100, 192), 2_336_804, 0.54, ("in1k",), 0.9, **_FOUR)
_edgenext("small", (48, 96, 160, 304), 5_586_832, 1.26, ("usi_in1k",), 0.95)
_edgenext("base", (80, 160, 288, 584), 18_511_292, 3.84, ("usi_in1k", "in21k_ft_in1k"), 0.95)
# of timm's own nobody published multiply-adds: they are counted
_edgenext("small_rw", (48, 96, 192, 384), 7_826_512, 1.57, ("sw_in1k",), 0.9, overlap=True, conv_bias=False)
