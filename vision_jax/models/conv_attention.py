"""What CoAtNet and MaxViT share: a stem, blocks of convolution, attention with relative positions, stages and a head.

The order of a stage's blocks is the families' own.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx

from vision_jax.kernels import window_attention
from vision_jax.layers.conv import Conv
from vision_jax.layers.convnext_block import ConvNeXtBlock
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mbconv import PreNormMBConv, Shrink
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import BatchNorm, LayerNorm, normalise
from vision_jax.layers.relative_bias import RelativeBias, RelativeBiasMap, RelativeBiasMlp
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, Stage, check_stages, stage_groups
from vision_jax.parameters import Normal, kaiming_normal, torch_default, xavier_uniform, zeros
from vision_jax.registry import check

CONVS = ("mbconv", "convnext")
POSITIONS = {"map": RelativeBiasMap, "table": RelativeBias, "mlp": RelativeBiasMlp}


@dataclasses.dataclass(frozen=True)
class ConvAttentionConfig(ModelConfig):
    """A network of convolution and attention.

    `conv`: "mbconv" or "convnext", whose scales start at `conv_scale_init`. `expand_output`: channels grow in the first
    map of a branch, not in its last: MBConv's inner ones are four times its output's, not its input's. `se_ratio`: the
    squeezed channels' share of the output's, else of the inner ones'. `position`: "map" or "table", learned for each
    offset, or "mlp", a network of the offset with `position_hidden` channels and dropout at `position_drop_rate`.
    `layer_scale_init`: of the attention and its MLP. `normal_init`: kernels start with a deviation of 0.02.
    """

    depths: tuple = (2, 2, 5, 2)
    embed_dims: tuple = (64, 128, 256, 512)
    stem_dims: tuple = (64, 64)
    head_dim: int = 32
    head_hidden: int | None = None
    conv: str = "mbconv"
    conv_scale_init: float = 1e-6
    expand_output: bool = True
    se_ratio: float = 0.25
    position: str = "table"
    position_hidden: int = 512
    position_drop_rate: float = 0.125
    layer_scale_init: float | None = None
    normal_init: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims")
        check(self.conv in CONVS, f"conv={self.conv!r}: one of {', '.join(map(repr, CONVS))}")
        check(self.position in POSITIONS, f"position={self.position!r}: one of {', '.join(map(repr, POSITIONS))}")
        for dim in self.embed_dims:
            check(
                dim % self.head_dim == 0, f"embed_dims={self.embed_dims} must be multiples of head_dim={self.head_dim}"
            )

    @property
    def conv_act(self):
        """The activation of the stem and of the convolutions' blocks."""
        return gelu

    @property
    def tf(self):
        """Whether the stem and MBConv have TensorFlow's padding, epsilon and biases."""
        return False

    @property
    def norm(self):
        """`(dim) -> module`, the norm before attention and MLPs, and the last."""
        return functools.partial(LayerNorm, epsilon=1e-5 if self.tf else 1e-6, dtype=self.dtype)

    @property
    def conv_norm(self):
        """`(dim) -> module`, the norm of the stem and of the convolutions' blocks."""
        if self.conv == "convnext":
            return functools.partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        return functools.partial(BatchNorm, epsilon=1e-3 if self.tf else 1e-5, dtype=self.dtype)

    @property
    def conv_init(self):
        """Initialisers of the convolutions' kernels and biases."""
        return dict(init=Normal(0.02) if self.normal_init else kaiming_normal, bias_init=zeros)

    @property
    def linear_init(self):
        """Initialiser of the kernels of attention and its MLP."""
        return Normal(0.02) if self.normal_init else xavier_uniform

    @property
    def mlp_init(self):
        """That, and the initialiser of an MLP's biases."""
        return dict(init=self.linear_init, bias_init=zeros if self.normal_init else Normal(1e-6))


def conv_block(c, din, dim, stride, *, init, **mbconv):
    """A block of convolution, [B, H, W, din] -> [B, H/stride, W/stride, dim]: MBConv with these options, or ConvNeXt's.

    `init`: the initialisers of ConvNeXt's.
    """
    if c.conv == "mbconv":
        hidden = 4 * (dim if c.expand_output else din)
        return PreNormMBConv(
            din, dim, hidden=hidden, squeezed=int(c.se_ratio * (dim if c.expand_output else hidden)), stride=stride,
            act=c.conv_act, dtype=c.dtype, **mbconv,
        )  # fmt: skip
    mlp = Mlp(dim, 4 * dim, act=c.conv_act, linear=functools.partial(PointwiseConv, **init), dtype=c.dtype)
    return ConvNeXtBlock(
        dim, 7, din=din, stride=stride, shortcut=Shrink(din, dim, dtype=c.dtype, **init) if stride == 2 else None,
        mlp=mlp, norm=c.conv_norm, layer_scale=c.conv_scale_init, dtype=c.dtype, **init,
    )  # fmt: skip


class RelativeAttention(nnx.Module):
    """Self-attention inside windows or over a grid, with relative position bias: [B, H, W, din] -> [B, H, W, dim].

    MaxViT (arXiv:2204.01697, section 3.2): windows of P x P neighbouring tokens, or of G x G tokens H/G and W/G apart.

    Args:
      c: a `ConvAttentionConfig`.
      din, inner, dim: channels in, of all heads together, and out.
      window_size: (height, width) of the windows or of the grid, in tokens.
      grid: whether it is one.
      qkv, linear: what makes the projections, a `QKV` and a `Linear`.
    """

    def __init__(self, c, din, inner, dim, *, window_size, grid=False, qkv, linear=Linear):
        self.window_size, self.grid = window_size, grid
        heads, kw = inner // c.head_dim, dict(init=c.linear_init, dtype=c.dtype)
        self.qkv = qkv(din, heads, c.head_dim, **kw)
        drop, hidden = c.position_drop_rate, c.position_hidden
        network = dict(hidden=hidden, drop=drop, dtype=c.dtype, **c.mlp_init) if c.position == "mlp" else {}
        self.rel_pos = POSITIONS[c.position](heads, window_size, **network)
        self.proj = linear(inner, dim, **kw)

    def __call__(self, x, train=None):
        q, k, v = self.qkv(x)
        apart = [n // w if self.grid else 1 for n, w in zip(x.shape[1:3], self.window_size, strict=True)]
        out = window_attention(q, k, v, window_size=self.window_size, dilation=apart, bias=self.rel_pos(train))
        return self.proj(out.reshape(*x.shape[:-1], -1))


class Stem(nnx.Module):
    """Two 3x3 convolutions, [B, H, W, C] -> [B, H/2, W/2, dim]."""

    def __init__(self, c):
        kw = dict(bias=c.tf, dtype=c.dtype, **c.conv_init)
        self.act = c.conv_act
        self.conv1 = Conv(c.in_chans, c.stem_dims[0], 3, stride=2, padding="same" if c.tf else None, **kw)
        self.norm1 = c.conv_norm(c.stem_dims[0])
        self.conv2 = Conv(*c.stem_dims, 3, **kw)

    def __call__(self, x, train=None):
        return self.conv2(self.act(normalise(self.norm1, self.conv1(x), train)))


class ConvAttention(Model):
    """Images [B, H, W, C] -> logits [B, num_classes].

    The first block of a stage halves the map; it is unlike the others, so they are not scanned.

    Args:
      config: a `ConvAttentionConfig`.
      block: (stage, index, channels in) -> block.
    """

    classifier = ("head.fc",)
    # what is added to every key adds one number to all scores of a query, and so does the offsets' last bias
    inert = (r"attn\w*\.qkv\.bias\[1\]$", r"rel_pos\.mlp\.fc2\.bias$")

    def __init__(self, config, block):
        c = self.config = config
        self.stem = Stem(c)
        rates, dims = linear_rates(c.drop_path_rate, c.depths), (c.stem_dims[-1], *c.embed_dims)

        def stage(i):
            def make(j):
                return block(i, j, dims[i + 1] if j else dims[i])

            return Stage(None, Stack(make, rates[i], remat=c.remat))

        self.stages = nnx.List([stage(i) for i in range(len(c.depths))])
        linear = functools.partial(Linear, init=torch_default, bias_init=torch_default)
        self.norm = None if c.head_hidden else c.norm(dims[-1])
        self.head = PooledHead(
            dims[-1], c.num_classes, norm=c.norm if c.head_hidden else None, hidden=c.head_hidden, act=jnp.tanh,
            drop=c.drop_rate, linear=linear, classifier=linear, dtype=c.dtype,
        )  # fmt: skip
        stages = (FeatureInfo(f"stages.{i}", dim, 4 * 2**i) for i, dim in enumerate(c.embed_dims))
        self.feature_info = (FeatureInfo("stem", c.stem_dims[-1], 2), *stages)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps in `out_indices` instead, not normalised: after the stem and after each stage.
        """
        x = self.stem(images, train)
        maps = [x, *self.run_stages(x, train)]
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        return normalise(self.norm, maps[-1], train)

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a classifier."""
        return self.head(x, train)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each stage, the head."""
        return stage_groups(self, r"^stem\.")
