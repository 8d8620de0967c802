"""EfficientFormer: Vision Transformers at MobileNet Speed (Li et al., 2022, arXiv:2206.01191).

A MetaFormer laid out for phones: maps stay maps with batch norms, mixed by pooling, until the last blocks of the last
stage, which are transformer blocks with learned biases for distances. The batch norms merge into their convolutions for
deployment (`reparameterize()`). Two heads, one for the labels and one for a teacher's, are averaged in evaluation.
Official repository: snap-research/EfficientFormer; compared here with timm's, to which its weights were ported.
"""

import dataclasses
import functools

import jax
from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.attention import WideQKV, aggregate, attention_probabilities
from vision_jax.layers.block import Block, MapBlock
from vision_jax.layers.conv import pair
from vision_jax.layers.conv_norm import ConvNorm, ConvNormMlp
from vision_jax.layers.drop import dropout, linear_rates
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.pooling import pool_mixer
from vision_jax.layers.position import distance_index
from vision_jax.layers.relative_bias import DistanceBias
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel, check_stages
from vision_jax.registry import check, register


@dataclasses.dataclass(frozen=True)
class EfficientFormerConfig(ModelConfig):
    """An EfficientFormer.

    `num_vit`: how many blocks at the end of the last stage are transformers; their `num_heads` heads have queries and
    keys of `key_dim` channels and values of `value_ratio` times as many.
    """

    depths: tuple = (3, 2, 6, 4)
    embed_dims: tuple = (48, 96, 224, 448)
    num_vit: int = 1
    num_heads: int = 8
    key_dim: int = 32
    value_ratio: int = 4
    mlp_ratio: float = 4.0
    layer_scale_init: float = 1e-5
    proj_drop_rate: float = 0.0

    def __post_init__(self):
        check_stages(self, "embed_dims")
        last = self.depths[-1]
        check(0 <= self.num_vit <= last, f"num_vit={self.num_vit}: 0 to {last}, the blocks of the last stage")


class BiasedAttention(nnx.Module):
    """Self-attention among all pixels with biases for their distances, [B, H, W, C] -> [B, H, W, C] (in MB3D)."""

    def __init__(self, c, dim, size):
        value_dim = c.value_ratio * c.key_dim
        self.qkv = WideQKV(dim, c.num_heads, c.key_dim, value_dim, dtype=c.dtype)
        self.bias = DistanceBias(c.num_heads, size)
        self.proj = Linear(c.num_heads * value_dim, dim, dtype=c.dtype)

    def __call__(self, x, train=None):
        B, H, W, C = x.shape
        q, k, v = self.qkv(x.reshape(B, H * W, C))
        probabilities = tap(self, "probabilities", attention_probabilities(q, k, bias=self.bias()))
        return self.proj(aggregate(probabilities, v).reshape(B, H, W, -1))


_SHARED = (
    (r"^norm_pre\.", "norm."),
    (r"\.attn\.bias\.", ".attn."),
    (r"\.attn\.", ".token_mixer."),
    (r"\.mlp\.fc(\d)\.bn\.", r".mlp.norm\1."),
    (r"\.mlp\.fc(\d)\.conv\.", r".mlp.fc\1."),
    (r"\.downsample\.bn\.", ".downsample.norm."),
)


class EfficientFormer(StagedModel):
    """Images [B, H, W, C] of one size -> logits [B, num_classes]; a pair of them, of the two heads, while training."""

    classifier = ("head", "head_dist")
    torch_ignore = (r"\.attention_bias_idxs$",)
    act = staticmethod(jax.nn.relu)  # of the stem

    @property
    def torch_names(self):
        """The renames of each dialect: there a module that flattens the map counts among the last stage's blocks."""
        c, last = self.config, len(self.config.depths) - 1
        flat = c.depths[-1] - c.num_vit

        def place(match):
            return f"stages.{last}.blocks.{int(match[1]) + (int(match[1]) >= flat)}."

        counted = (rf"^stages\.{last}\.blocks\.(\d+)\.", place)
        stem = (
            (r"^stem\.(\d)\.conv\.", lambda match: f"stem.conv{int(match[1]) + 1}."),
            (r"^stem\.(\d)\.bn\.", lambda match: f"stem.norm{int(match[1]) + 1}."),
        )
        official = (
            (r"^stem\.(conv|norm)1\.", lambda match: f"patch_embed.{int(match[1] == 'norm')}."),
            (r"^stem\.(conv|norm)2\.", lambda match: f"patch_embed.{3 + int(match[1] == 'norm')}."),
            (r"^stages\.(\d)\.blocks\.", lambda match: f"network.{2 * int(match[1])}."),
            (r"^stages\.(\d)\.downsample\.conv\.", lambda match: f"network.{2 * int(match[1]) - 1}.proj."),
            (r"^stages\.(\d)\.downsample\.norm\.", lambda match: f"network.{2 * int(match[1]) - 1}.norm."),
            (r"\.ls(\d)\.gamma$", r".layer_scale_\1"),
            (r"^head_dist\.", "dist_head."),
        )
        timm = (counted, *stem, *_SHARED)
        return {"timm": timm, "official": (*timm, *official)}

    def __init__(self, config):
        c = self.config = config
        widths, kw = (c.in_chans, c.embed_dims[0] // 2, c.embed_dims[0]), dict(stride=2, bias=True, dtype=c.dtype)
        self.stem = nnx.List([ConvNorm(widths[i], widths[i + 1], 3, act=self.act, **kw) for i in range(2)])
        stages, rates = [], linear_rates(c.drop_path_rate, c.depths)
        for i in range(len(c.depths)):
            down = self._downsample(i, **kw) if i else None
            stages.append(Stage(down, Stack(functools.partial(self._block, i), rates[i], remat=c.remat)))
        self.stages, dim = nnx.List(stages), c.embed_dims[-1]
        self.norm_pre = self._norm(dim)
        self.head, self.head_dist = (
            Linear(dim, c.num_classes, dtype=c.dtype) if c.num_classes else None for _ in range(2)
        )
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", n, 4 * 2**i) for i, n in enumerate(c.embed_dims))

    def _size(self, stage):
        """(height, width) of a stage's map."""
        return tuple(-(-n // (4 * 2**stage)) for n in pair(self.config.img_size))

    def _norm(self, dim):
        return LayerNorm(dim, epsilon=1e-5, dtype=self.config.dtype)

    def _downsample(self, stage, **kw):
        dims = self.config.embed_dims
        return ConvNorm(dims[stage - 1], dims[stage], 3, **kw)

    def _block(self, stage, index):
        c, dim = self.config, self.config.embed_dims[stage]
        hidden, kw = int(dim * c.mlp_ratio), dict(drop=c.proj_drop_rate, dtype=c.dtype)
        scale = dict(layer_scale=c.layer_scale_init, dtype=c.dtype)
        if stage == len(c.depths) - 1 and index >= c.depths[-1] - c.num_vit:
            attn = BiasedAttention(c, dim, self._size(stage))
            return Block(dim, attn=attn, mlp=Mlp(dim, hidden, **kw), norm=self._norm, **scale)
        return MapBlock(dim, attn=pool_mixer, mlp=ConvNormMlp(dim, hidden, act=gelu, bias=True, **kw), **scale)

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        self.check_size(images)
        return self.stem[1](self.stem[0](images, train), train)

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], a pair while training, or pooled features [B, C]."""
        x = dropout(x.mean((1, 2)), self.config.drop_rate, train)
        return self.two_heads(x, x, train)

    def torch_buffers(self):
        """Tables of indices that weight files of the reference hold."""
        c, last, size = self.config, len(self.config.depths) - 1, self._size(len(self.config.depths) - 1)
        names = (f"stages.{last}.blocks.{i + 1}.token_mixer." for i in range(c.depths[-1] - c.num_vit, c.depths[-1]))
        return {f"{name}attention_bias_idxs": distance_index(*size).astype("int64") for name in names}


def _efficientformer(name, depths, embed_dims, num_vit, params, gmacs):
    register(
        f"efficientformer_{name}", EfficientFormer,
        EfficientFormerConfig(depths=depths, embed_dims=embed_dims, num_vit=num_vit),
        params=params, gmacs=gmacs, paper="2206.01191", licence="apache-2.0", tags=("snap_dist_in1k",), crop_pct=0.95,
    )  # fmt: skip


_efficientformer("l1", (3, 2, 6, 4), (48, 96, 224, 448), 1, 12_289_928, 1.3)
_efficientformer("l3", (4, 4, 12, 6), (64, 128, 320, 512), 4, 31_406_000, 3.9)
_efficientformer("l7", (6, 6, 18, 8), (96, 192, 384, 768), 8, 82_229_328, 10.2)
