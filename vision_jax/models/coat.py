"""CoaT and CoaT-Lite: Co-Scale Conv-Attentional Image Transformers (Xu et al., 2021, arXiv:2104.06399).

Attention is factorised: softmax runs over the tokens of the keys, so that keys and values make one small matrix a head,
which all queries read, at a cost linear in the tokens. What it lacks of position comes from depthwise convolutions, of
the tokens (one for all blocks of a stage) and of the values, weighed by the queries. CoaT-Lite is four such stages, one
after the other; in CoaT blocks follow that keep the last three scales side by side and exchange what attention gave
between them. Official repository: mlpc-ucsd/CoaT; compared here with timm's, to which its weights were ported.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vision_jax.kernels import linear_attention
from vision_jax.layers.attention import QKV
from vision_jax.layers.block import Block
from vision_jax.layers.conditional_position import ConditionalPosition
from vision_jax.layers.conv import Conv, pair
from vision_jax.layers.drop import drop_path, dropout
from vision_jax.layers.interpolate import bilinear
from vision_jax.layers.linear import Linear, PointwiseConv1d
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.stack import Stack
from vision_jax.mesh import constrain_batch
from vision_jax.models.base import FeatureInfo, Model, ModelConfig, check_stages
from vision_jax.parameters import param, torch_default, trunc_normal
from vision_jax.registry import check, register

INIT = dict(init=torch_default, bias_init=torch_default)


@dataclasses.dataclass(frozen=True)
class CoaTConfig(ModelConfig):
    """A CoaT; a number a stage for depths, embed_dims and mlp_ratios.

    `parallel_depth`: blocks that all scales but the first go through together; 0 for CoaT-Lite. `windows`: of the
    convolutions of values, (kernel size, heads) each. Every block has the same drop-path rate.
    """

    patch_size: int = 4
    depths: tuple = (2, 2, 2, 2)
    embed_dims: tuple = (64, 128, 320, 512)
    mlp_ratios: tuple = (4.0, 4.0, 4.0, 4.0)
    parallel_depth: int = 0
    windows: tuple = ((3, 2), (5, 3), (7, 3))
    proj_drop_rate: float = 0.0
    scan_blocks: bool = False

    def __post_init__(self):
        check_stages(self, "embed_dims", "mlp_ratios")
        given = f"embed_dims={self.embed_dims}"
        fits = all(dim % self.num_heads == 0 for dim in self.embed_dims)
        check(fits, f"{given} must be multiples of the {self.num_heads} heads of windows={self.windows}")
        if self.parallel_depth:
            check(len(self.depths) > 2, f"depths={self.depths}: three stages or more, if parallel_depth is not 0")
            for name, values in (("embed_dims", self.embed_dims), ("mlp_ratios", self.mlp_ratios)):
                check(len(set(values[1:])) == 1, f"{name}={values}: one number for all stages but the first")
        tile = self.patch_size * 2 ** (len(self.depths) - 1)
        for side in pair(self.img_size):
            near = max(round(side / tile), 1) * tile
            whole = side % tile == 0 if self.parallel_depth else side >= tile
            check(whole, f"img_size={self.img_size}: the last map is of no whole patches; {near} would do")

    @property
    def num_heads(self):
        """Heads of every attention."""
        return sum(heads for _, heads in self.windows)


def apart(x, size):
    """Tokens [B, 1+N, ...] -> the first, [B, 1, ...], and the map of the others, [B, H, W, ...]."""
    return x[:, :1], x[:, 1:].reshape(x.shape[0], *size, *x.shape[2:])


def joined(token, x):
    """The inverse of `apart`."""
    return jnp.concatenate([token, x.reshape(x.shape[0], -1, *x.shape[3:])], axis=1)


class TokenPosition(ConditionalPosition):
    """Conditional positions of a class token and a map of `size`, [B, 1+N, C] -> [B, 1+N, C]; the token has none."""

    def __init__(self, dim, size, *, dtype):
        super().__init__(dim, **INIT, dtype=dtype)
        self.size = size

    def __call__(self, x):
        token, x = apart(x, self.size)
        return joined(token, super().__call__(x))


class ConvRelativePosition(nnx.Module):
    """q * convolutions of v: how far a value lies decides its weight (the paper's convolutional relative positions).

    Queries and values of a class token and a map, [B, 1+N, heads, d] each -> the same; 0 for the token.

    Args:
      c: the network's configuration.
      dim: channels of all heads.
      size: (H, W) of the map.
    """

    def __init__(self, c, dim, size):
        self.size, width, kw = size, dim // c.num_heads, dict(**INIT, dtype=c.dtype)
        convs = [(kernel_size, heads * width) for kernel_size, heads in c.windows]
        self.conv_list = nnx.List([Conv(n, n, kernel_size, groups=n, **kw) for kernel_size, n in convs])

    def __call__(self, q, v):
        (_, q), (_, x) = apart(q, self.size), apart(v, self.size)
        x = x.reshape(*x.shape[:3], -1)
        pieces = jnp.split(x, np.cumsum([conv.groups for conv in self.conv_list])[:-1].tolist(), axis=-1)
        y = jnp.concatenate([conv(piece) for conv, piece in zip(self.conv_list, pieces, strict=True)], axis=-1)
        return joined(jnp.zeros_like(v[:, :1]), q * y.reshape(q.shape))


class FactorisedAttention(nnx.Module):
    """q (softmax(k)^T v) / sqrt(d) and relative positions, [B, 1+N, C] -> [B, 1+N, C] (the paper's FactorAtt).

    The softmax is over the tokens. Called with the `ConvRelativePosition` that a stage's blocks share.
    """

    def __init__(self, c, dim):
        self.drop = c.proj_drop_rate
        self.qkv = QKV(dim, c.num_heads, dim // c.num_heads, dtype=c.dtype)
        self.proj = Linear(dim, dim, dtype=c.dtype)

    def __call__(self, x, train, crpe):
        q, k, v = self.qkv(x)
        k = jax.nn.softmax(k.astype(jnp.promote_types(k.dtype, jnp.float32)), axis=1).astype(v.dtype)
        out = linear_attention(q, k, v) * q.shape[-1] ** -0.5 + crpe(q, v)
        return dropout(self.proj(out.reshape(x.shape)), self.drop, train)


class SerialBlock(Block):
    """Positions, attention, MLP: [B, 1+N, C] -> the same; all blocks of a stage share their positions."""

    def __call__(self, x, train, cpe, crpe):
        return super().__call__(cpe(x), train, crpe)


class ParallelBlock(nnx.Module):
    """Blocks of several scales side by side: a list of tokens [B, 1+N, C] -> the same.

    What each attention gives is added to all scales, its map interpolated. The scales share their MLP.

    Args:
      dim: channels.
      sizes: (H, W) of each scale's map.
      attn: `() -> module`; mlp: the channel mixer, called as mlp(x, train).
      norm: `(dim) -> module`.
    """

    def __init__(self, dim, sizes, *, attn, mlp, norm):
        self.sizes, self.scales = sizes, tuple(range(2, 2 + len(sizes)))
        self.mlp2 = mlp
        for n in self.scales:
            setattr(self, f"norm1{n}", norm(dim))
            setattr(self, f"attn{n}", attn())
            setattr(self, f"norm2{n}", norm(dim))

    def _all(self, name):
        return [getattr(self, f"{name}{n}") for n in self.scales]

    def __call__(self, xs, train, cpes, crpes):
        given, out = [], []
        xs = [cpe(x) for cpe, x in zip(cpes, xs, strict=True)]
        parts = zip(self._all("attn"), self._all("norm1"), xs, crpes, self.sizes, strict=True)
        for attn, norm, x, crpe, size in parts:
            given.append(apart(attn(norm(x), train, crpe), size))
        token = sum(token for token, _ in given)
        for x, norm, size in zip(xs, self._all("norm2"), self.sizes, strict=True):
            y = sum(y if y.shape[1:3] == size else bilinear(y, size) for _, y in given)
            x = x + drop_path(joined(token, y), train)
            out.append(constrain_batch(x + drop_path(self.mlp2(norm(x), train), train)))
        return out


class CoaT(Model):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head",)
    inert = (r"attn\d?\.qkv\.bias\[1\]$",)  # one number is added to a channel of all keys
    torch_names: ClassVar = {"timm": ((r"\.attn(\d?)\.", r".factoratt_crpe\1."),)}
    # what blocks share, under the name of each
    torch_ignore = (r"blocks\d\.\d+\.cpe\.", r"\.crpe\.", r"\.mlp[3-9]\.")

    def __init__(self, config):
        c = self.config = config
        kw, norm = dict(dtype=c.dtype), functools.partial(LayerNorm, epsilon=1e-6, dtype=c.dtype)
        self.grids = tuple(
            tuple(side // (c.patch_size * 2**i) for side in pair(c.img_size)) for i in range(len(c.depths))
        )
        dims, self.grid = (c.in_chans, *c.embed_dims), self.grids[-1]

        def mlp(stage):
            dim = c.embed_dims[stage]
            return Mlp(dim, int(dim * c.mlp_ratios[stage]), drop=c.proj_drop_rate, **kw)

        def serial(stage, _):
            dim = c.embed_dims[stage]
            return SerialBlock(dim, attn=FactorisedAttention(c, dim), mlp=mlp(stage), norm=norm, **kw)

        def parallel(_):
            attn = functools.partial(FactorisedAttention, c, dims[-1])
            return ParallelBlock(dims[-1], self.grids[1:], attn=attn, mlp=mlp(-1), norm=norm)

        for i, (dim, depth, size) in enumerate(zip(c.embed_dims, c.depths, self.grids, strict=True)):
            patch = dict(patch_size=2 if i else c.patch_size, norm=functools.partial(LayerNorm, epsilon=1e-5, **kw))
            setattr(self, f"patch_embed{i + 1}", PatchEmbed(dims[i], dim, **patch, **kw))
            setattr(self, f"cls_token{i + 1}", param((1, 1, dim), trunc_normal))
            setattr(self, f"cpe{i + 1}", TokenPosition(dim, size, **kw))
            setattr(self, f"crpe{i + 1}", ConvRelativePosition(c, dim, size))
            setattr(self, f"serial_blocks{i + 1}", self._stack(functools.partial(serial, i), depth))
            if i + 1 == len(c.depths) or (i and c.parallel_depth):
                setattr(self, f"norm{i + 1}", norm(dim))
        self.parallel_blocks = self._stack(parallel, c.parallel_depth) if c.parallel_depth else None
        self.aggregate = PointwiseConv1d(len(dims) - 2, 1, **INIT, **kw) if c.parallel_depth else None
        self.head = Linear(dims[-1], c.num_classes, **kw) if c.num_classes else None
        self.feature_info = tuple(
            FeatureInfo(f"serial_blocks{i + 1}", dim, c.patch_size * 2**i) for i, dim in enumerate(c.embed_dims)
        )
        if c.parallel_depth:
            first, *others = self.feature_info
            self.feature_info = (first, *(info._replace(name="parallel_blocks") for info in others))

    def _stack(self, block, depth):
        c = self.config
        return Stack(block, (c.drop_path_rate,) * depth, scan=c.scan_blocks, remat=c.remat)

    def _all(self, name, first=1):
        """What stages from `first` on have of a name."""
        return [getattr(self, f"{name}{i}") for i in range(first, 1 + len(self.grids))]

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, 1+N, C] of the last scale, normalised; of CoaT a list, without the first.

        pyramid=True gives the maps [B, H', W', C] of the scales in `out_indices` instead, not normalised: the first
        after its stage, the others after the last block.
        """
        self.check_size(images)
        x, xs = images, []
        parts = map(self._all, ("patch_embed", "cls_token", "cpe", "crpe", "serial_blocks"))
        for embed, token, cpe, crpe, blocks, size in zip(*parts, self.grids, strict=True):
            x = embed(x)
            token = jnp.broadcast_to(token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
            xs.append(blocks(joined(token, x), train, cpe, crpe))
            x = apart(xs[-1], size)[1]
        if self.parallel_blocks:
            xs[1:] = self.parallel_blocks(xs[1:], train, self._all("cpe", 2), self._all("crpe", 2))
        if pyramid:
            return [apart(xs[i], self.grids[i])[1] for i in self.indices(out_indices)]
        if self.parallel_blocks:
            return [norm(x) for norm, x in zip(self._all("norm", 2), xs[1:], strict=True)]
        return self._all("norm", len(xs))[0](xs[-1])

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or without a head the class token [B, C], of CoaT a mixture of them."""
        if self.aggregate:
            x = self.aggregate(jnp.stack([tokens[:, 0] for tokens in x], axis=-1)).swapaxes(1, 2)
        x = dropout(x[:, 0], self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def torch_aliases(self):
        """{prefix of names: prefixes under which files of the reference hold the same again}."""
        out = {}
        for i, blocks in enumerate(self._all("serial_blocks"), 1):
            names = [f"serial_blocks{i}.{j}." for j in range(len(blocks))]
            out[f"cpe{i}."] = [f"{name}cpe." for name in names]
            out[f"crpe{i}."] = [f"{name}factoratt_crpe.crpe." for name in names]
        for j in range(self.config.parallel_depth):
            name = f"parallel_blocks.{j}."
            for i in range(2, 1 + len(self.grids)):
                out[f"crpe{i}."].append(f"{name}factoratt_crpe{i}.crpe.")
            out[f"{name}mlp2."] = [f"{name}mlp{i}." for i in range(3, 1 + len(self.grids))]
        return out

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the first patches, each block with the patches before it, the head."""
        groups, block = [], 0
        for i, blocks in enumerate(self._all("serial_blocks"), 1):
            groups.append((rf"^(patch_embed|cls_token|cpe|crpe){i}\b", block + (i > 1)))
            groups += [(rf"^serial_blocks{i}\.{j}\.", block + j + 1) for j in range(len(blocks))]
            block += len(blocks)
        groups += [(rf"^parallel_blocks\.{j}\.", block + j + 1) for j in range(self.config.parallel_depth)]
        return (*groups, (r"", block + self.config.parallel_depth + 1))


def _coat(name, embed_dims, params, gmacs, crop_pct=0.9, crop_mode="center", **fields):
    register(
        f"coat_{name}", CoaT, CoaTConfig(embed_dims=embed_dims, **fields), params=params, gmacs=gmacs,
        paper="2104.06399", licence="apache-2.0", tags=("in1k",), crop_pct=crop_pct, crop_mode=crop_mode,
    )  # fmt: skip


_coat("tiny", (152, 152, 152, 152), 5_498_540, 4.4, parallel_depth=6)
_coat("mini", (152, 216, 216, 216), 10_337_004, 6.8, parallel_depth=6)
_coat("small", (152, 320, 320, 320), 21_693_908, 12.6, parallel_depth=6)
_LITE = dict(mlp_ratios=(8.0, 8.0, 4.0, 4.0))
_coat("lite_tiny", (64, 128, 256, 320), 5_721_960, 1.6, **_LITE)
_coat("lite_mini", (64, 128, 320, 512), 11_011_560, 2.0, **_LITE)
_coat("lite_small", (64, 128, 320, 512), 19_838_504, 4.0, depths=(3, 4, 6, 3), **_LITE)
_MEDIUM = dict(embed_dims=(128, 256, 320, 512), depths=(3, 6, 10, 8))
_coat("lite_medium", params=44_571_048, gmacs=9.8, **_MEDIUM)
_coat("lite_medium_384", params=44_571_048, gmacs=28.7, img_size=384, crop_pct=1.0, crop_mode="squash", **_MEDIUM)
