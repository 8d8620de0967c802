"""What the networks of inverted residuals share, from MobileNets and MnasNet to EfficientNetV2.

All are a strided convolution, stages of mobile blocks written down in a table, and a wide last layer before the
classifier. The tables are the families' own.
"""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax
from flax import nnx

from vision_jax.layers.blur_pool import blur_pool
from vision_jax.layers.channels import round_channels
from vision_jax.layers.cond_conv import CondConv
from vision_jax.layers.conv import Conv
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.global_context import GlobalContext
from vision_jax.layers.group_norm import GroupNorm
from vision_jax.layers.inverted_residual import ConvBlock, FoldedConv, FusedMBConv, MBConv, Parts, SeparableConv
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mixed_conv import MixedConv
from vision_jax.layers.mlp import gelu
from vision_jax.layers.norm import BatchNorm, normalise
from vision_jax.layers.pooling import avg_pool
from vision_jax.layers.squeeze_excite import SqueezeExcite
from vision_jax.layers.stack import Stack
from vision_jax.layers.universal_bottleneck import MobileAttention, UniversalBottleneck
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, block_groups, numbered
from vision_jax.parameters import VarianceScaling, kaiming_normal, zeros
from vision_jax.registry import check

KINDS = ("conv", "separable", "folded", "mbconv", "fused", "uib", "mqa")
SHRINK = {"avg": functools.partial(avg_pool, window=2, stride=2), "blur": functools.partial(blur_pool, mode="constant")}
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "gelu": gelu,
}
GATES = {"sigmoid": jax.nn.sigmoid, "hard_sigmoid": jax.nn.hard_sigmoid}


class Blocks(NamedTuple):
    """Equal blocks in a row; a stage is one row or several.

    Attributes:
      kind: "conv", "separable", "folded", "mbconv" or "fused": see `layers.inverted_residual`; "uib" or "mqa":
        `layers.universal_bottleneck`.
      repeats: how many.
      kernel_size: of the convolution that is not pointwise; of "uib" that in the middle, 0 for none; of "mbconv" also
        a tuple, for convolutions side by side.
      stride: of the stage's first block.
      expansion: hidden channels are the input's times this.
      dim: channels out.
      se: channels of the squeeze-and-excitation, as a share of those that `se_from_hidden` says; 0 for none.
      act: the activation, or None for the network's.
      skip: whether the input is added where it can be.
      start: kernel size of the convolution that "uib" starts with; 0 for none.
      num_heads, head_dim, kv_stride: of "mqa"; the stride of the map of its keys and values.
      group_width: channels that the convolution with a kernel mixes, of "separable", "mbconv" and "fused"; 0 for one,
        or for all if it is "fused".
      last_act: whether "separable" ends with an activation.
      splits, num_experts: of "mbconv", see there.
      hidden, squeezed: numbers of channels, where expansion and se do not give them (pruned networks); 0 if they do.
    """

    kind: str
    repeats: int
    kernel_size: int
    stride: int
    expansion: float
    dim: int
    se: float = 0.0
    act: str | None = None
    skip: bool = True
    start: int = 0
    num_heads: int = 0
    head_dim: int = 0
    kv_stride: int = 1
    group_width: int = 0
    last_act: bool = False
    splits: tuple = (1, 1)
    num_experts: int = 0
    hidden: int = 0
    squeezed: int = 0


B0 = (  # EfficientNet's smallest network, from which TinyNet's too are scaled
    (Blocks("separable", 1, 3, 1, 1, 16, 0.25),),
    (Blocks("mbconv", 2, 3, 2, 6, 24, 0.25),),
    (Blocks("mbconv", 2, 5, 2, 6, 40, 0.25),),
    (Blocks("mbconv", 3, 3, 2, 6, 80, 0.25),),
    (Blocks("mbconv", 3, 5, 1, 6, 112, 0.25),),
    (Blocks("mbconv", 4, 5, 2, 6, 192, 0.25),),
    (Blocks("mbconv", 1, 3, 1, 6, 320, 0.25),),
)


def scaled(stages, width=1.0, depth=1.0, *, divisor=8, limit=0.9, fixed_ends=False, rounding=math.ceil):
    """A table of stages of other channels and repeats (EfficientNet: arXiv:1905.11946, section 3.3).

    Args:
      stages: tuples of `Blocks`.
      width: factor of the channels, which stay multiples of `divisor`.
      depth: factor of each stage's repeats; a number, or one a stage. The rows of a stage share them.
      divisor, limit: see `round_channels`.
      fixed_ends: whether the first and the last stage keep their repeats.
      rounding: what makes whole numbers of repeats.
    """
    depths = depth if isinstance(depth, tuple) else (depth,) * len(stages)
    if fixed_ends:
        depths = (1, *depths[1:-1], 1)
    out = []
    for stage, factor in zip(stages, depths, strict=True):
        dims = (round_channels(row.dim * width, divisor, limit) for row in stage)
        repeats = _shared([row.repeats for row in stage], factor, rounding)
        changed = zip(stage, dims, repeats, strict=True)
        out.append(tuple(row._replace(dim=dim, repeats=count) for row, dim, count in changed))
    return tuple(out)


def _shared(repeats, factor, rounding):
    """Repeats whose sum is the factor's, shared in proportion from the last row on, at least one each."""
    left, rest, out = sum(repeats), max(1, rounding(sum(repeats) * factor)), []
    for count in reversed(repeats):
        out.append(max(1, round(count / left * rest)))
        left, rest = left - count, rest - out[-1]
    return out[::-1]


@dataclasses.dataclass(frozen=True)
class InvertedResidualConfig(ModelConfig):
    """A network of inverted residuals.

    `stem_dim` and `head_dim`: channels of the first convolution and of the last, 0 for no last one; `stem_kernel`: the
    kernel size of the first; `pooled_head`: the last comes after the pooling (MobileNetV3), and has a bias if
    `head_bias`, a norm if `head_norm`. `se_act`, `se_gate`: activations of the squeeze-and-excitation, None for the
    block's; `se_from_hidden`: its channels are counted from the block's hidden ones, not from its input's, and are a
    multiple of `se_divisor`, no less than the share `se_limit` of what was counted; `global_context`: its place is
    taken by global context blocks. `same_padding`: TensorFlow's; with the `epsilon` of its batch norms it is what the
    weights of the `tf_` variants were trained with. `norm_width`: channels of a group of group norms, 0 for batch
    norms. `shrink`: "avg" or "blur" halve maps in place of strides, in the bottlenecks but not the stem.
    `layer_scale`: initial scale of the branches of MobileNetV4.
    """

    stages: tuple = ()
    stem_dim: int = 32
    stem_kernel: int = 3
    head_dim: int = 1280
    pooled_head: bool = False
    head_bias: bool = True
    head_norm: bool = False
    act: str = "relu"
    se_act: str | None = None
    se_gate: str = "sigmoid"
    se_from_hidden: bool = False
    se_divisor: int = 1
    se_limit: float = 0.9
    global_context: bool = False
    same_padding: bool = False
    epsilon: float = 1e-5
    norm_width: int = 0
    shrink: str | None = None
    layer_scale: float | None = None

    def __post_init__(self):
        check(self.stages and all(self.stages), "stages=(): at least one, each with blocks")
        check(self.se_gate in GATES, f"se_gate={self.se_gate!r}: one of {tuple(GATES)}")
        check(self.shrink in (None, *SHRINK), f"shrink={self.shrink!r}: None or one of {tuple(SHRINK)}")
        rows = [Blocks(*row) for stage in self.stages for row in stage]
        for act in (self.act, self.se_act, *(row.act for row in rows)):
            check(act is None or act in ACTIVATIONS, f"act={act!r}: one of {tuple(ACTIVATIONS)}")
        for row in rows:
            check(row.kind in KINDS, f"kind={row.kind!r}: one of {KINDS}")
            plain = isinstance(row.kernel_size, int) and row.group_width < 2 and tuple(row.splits) == (1, 1)
            check(plain or not row.num_experts, f"num_experts={row.num_experts}: only of plain depthwise kernels")


class InvertedResiduals(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]; of any size."""

    classifier = ("head",)
    inert = (r"\.se\.conv_attn\.bias$",)  # adds one number to all scores
    torch_names: ClassVar = {
        "timm": (
            (r"^head\.", "classifier."),
            (r"\.se\.fc1\.", ".se.conv_reduce."),
            (r"\.se\.fc2\.", ".se.conv_expand."),
            (r"\.attn\.q\.", ".attn.query.proj."),
            (r"\.attn\.proj\.", ".attn.output.proj."),
        ),
    }

    def __init__(self, config):
        c = self.config = config
        self.act = ACTIVATIONS[c.act]
        parts, reduction = self._parts(c.act), 2
        self.conv_stem = parts.conv(c.in_chans, c.stem_dim, c.stem_kernel, stride=2)
        self.bn1 = parts.norm(c.stem_dim)
        rows = [tuple(Blocks(*row) for row in stage) for stage in c.stages]
        depths = tuple(sum(row.repeats for row in stage) for stage in rows)
        rates = linear_rates(c.drop_path_rate, (*depths, 1))  # of one block more than there are
        info, stacks, dim = [FeatureInfo("conv_stem", c.stem_dim, 2)], [], c.stem_dim
        for i, stage in enumerate(rows):
            if stage[0].stride == 1:  # the map before is of this size too: the later one counts
                info.pop()
            flat = [(row, j) for row in stage for j in range(row.repeats)]
            dims = (dim, *(row.dim for row, _ in flat))
            block = functools.partial(self._block, flat, dims)
            stacks.append(Stack(block, rates[i], remat=c.remat))
            dim, reduction = dims[-1], reduction * stage[0].stride
            info.append(FeatureInfo(f"blocks.{i}", dim, reduction))
        self.blocks, self.feature_info = nnx.List(stacks), tuple(info)
        pointwise = functools.partial(PointwiseConv, init=kaiming_normal, bias_init=zeros, dtype=c.dtype)
        bias, out = c.pooled_head and c.head_bias, c.head_dim or dim
        self.conv_head = pointwise(dim, out, bias=bias) if c.head_dim else None
        self.norm_head = parts.norm(out) if c.head_norm else None
        self.bn2 = parts.norm(out) if c.head_dim and not c.pooled_head else None
        init = VarianceScaling(1 / 3, "fan_out", "uniform")
        self.head = Linear(out, c.num_classes, init=init, dtype=c.dtype) if c.num_classes else None

    def _parts(self, act):
        """The layers of blocks with this activation."""
        c, kw = self.config, dict(init=kaiming_normal, dtype=self.config.dtype)

        def conv(din, dout, kernel_size, *, stride=1, groups=1, num_experts=0):
            if isinstance(kernel_size, tuple):
                one = functools.partial(conv, stride=stride)
                return MixedConv(din, dout, kernel_size, lambda i, o, k: one(i, o, k, groups=i if groups > 1 else 1))
            same = kernel_size % 2 == 0 or (c.same_padding and stride > 1)
            how = dict(stride=stride, padding="same" if same else None, groups=groups, **kw)
            if num_experts:
                return CondConv(din, dout, kernel_size, num_experts, **how)
            if kernel_size == stride == groups == 1:
                return PointwiseConv(din, dout, bias=False, **kw)
            return Conv(din, dout, kernel_size, bias=False, **how)

        se = dict(act=ACTIVATIONS[c.se_act or act], bias_init=zeros, **kw)
        if c.global_context:
            se = functools.partial(GlobalContext, **se)
        else:
            se = functools.partial(SqueezeExcite, gate=GATES[c.se_gate], **se)
        return Parts(conv, self._norm, ACTIVATIONS[act], se, SHRINK.get(c.shrink))

    def _norm(self, dim):
        c = self.config
        if c.norm_width:
            return GroupNorm(dim, dim // c.norm_width, epsilon=c.epsilon, dtype=c.dtype)
        return BatchNorm(dim, epsilon=c.epsilon, dtype=c.dtype)

    def _block(self, rows, dims, index):
        (row, _), din, dout, c = rows[index], dims[index], dims[index + 1], self.config
        if row.kind == "mqa":
            how = dict(
                num_heads=row.num_heads, head_dim=row.head_dim, kernel_size=row.kernel_size, stride=row.kv_stride
            )
            return MobileAttention(din, layer_scale=c.layer_scale, dtype=c.dtype, **how)
        parts = self._parts(row.act or c.act)
        hidden = row.hidden or (din if row.kind == "separable" else round_channels(din * row.expansion))
        squeezed = hidden * (row.se if c.se_from_hidden else row.se / row.expansion)
        squeezed = (
            round_channels(squeezed, c.se_divisor, c.se_limit) if row.se and c.se_divisor > 1 else round(squeezed)
        )
        how, squeezed = dict(stride=1 if index else row.stride, skip=row.skip), row.squeezed or squeezed
        if row.kind == "uib":
            how |= dict(hidden=hidden, kernel_sizes=(row.start, row.kernel_size), act=parts.act, shrink=parts.shrink)
            return UniversalBottleneck(din, dout, layer_scale=c.layer_scale, dtype=c.dtype, **how)
        if row.kind == "conv":
            return ConvBlock(din, dout, row.kernel_size, parts=parts, **how)
        if row.kind == "folded":
            return FoldedConv(din, dout, row.kernel_size, hidden=hidden, squeezed=squeezed, parts=parts)
        how |= dict(squeezed=squeezed, parts=parts)
        if row.kind == "fused":
            return FusedMBConv(din, dout, row.kernel_size, hidden=hidden, group_width=row.group_width, **how)
        how |= dict(group_width=row.group_width or 1)
        if row.kind == "separable":
            return SeparableConv(din, dout, row.kernel_size, last_act=row.last_act, **how)
        how |= dict(splits=row.splits, num_experts=row.num_experts)
        return MBConv(din, dout, row.kernel_size, hidden=hidden, **how)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, head_dim], or with a pooled head, or none, that of the last stage.

        pyramid=True gives the maps in `out_indices` instead: the last of each size, from half the image's on.
        """
        x = self.act(normalise(self.bn1, self.conv_stem(images), train))
        maps = {"conv_stem": x}
        for i, blocks in enumerate(self.blocks):
            maps[f"blocks.{i}"] = x = blocks(x, train)
        if pyramid:
            return [maps[self.feature_info[i].name] for i in self.indices(out_indices)]
        return self.act(normalise(self.bn2, self.conv_head(x), train)) if self.bn2 else x

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or the last features [B, head_dim] without a classifier."""
        x = x.mean(axis=(1, 2))
        if self.config.pooled_head:
            x = self.act(normalise(self.norm_head, self.conv_head(x), train))
        x = dropout(x, self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each block, the head."""
        return block_groups(r"^(conv_stem|bn1)\.", numbered("blocks", self.blocks))
