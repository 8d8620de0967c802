"""What every model shares."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.layers.conv import pair
from vision_jax.layers.conv_norm import reparameterized
from vision_jax.layers.drop import dropout
from vision_jax.layers.linear import Linear
from vision_jax.layers.norm import normalise
from vision_jax.layers.patch import PatchEmbed
from vision_jax.layers.resample import resample_positions
from vision_jax.layers.stack import Stack
from vision_jax.parameters import lecun_normal, zeros
from vision_jax.registry import check, create_model, fill


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The fields that the configs of all families share.

    Attributes:
      img_size: height and width of the images, in pixels.
      in_chans: their channels.
      num_classes: of the classifier; 0 for pooled features.
      drop_rate: dropout before the classifier.
      drop_path_rate: of the last block; where not said otherwise it grows linearly from 0 at the first.
      remat: what the backward pass recomputes: see `layers.stack`.
      dtype: of the computation; parameters are float32.
    """

    img_size: int | tuple = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: str | None = None
    dtype: Any = jnp.float32


class FeatureInfo(NamedTuple):
    """One map of the pyramid (a tuple, because attributes of modules must be hashable)."""

    name: str
    channels: int
    reduction: int


class TokenLogits(NamedTuple):
    """What a model gives in training by token labelling (Jiang et al., 2021, arXiv:2104.10858).

    Attributes:
      logits: of the image, [B, num_classes].
      tokens: of every patch, [B, h, w, num_classes], each with the image that the patch came from.
      kept: share of each image that is its own, a scalar; the rest is of the image as far from the batch's other end.
    """

    logits: jax.Array
    tokens: jax.Array
    kept: jax.Array


class Model(nnx.Module):
    """forward_features, then forward_head.

    A family sets `config`, `feature_info` (one `FeatureInfo` for each map of the pyramid) and the methods
    `forward_features(images, train=None, pyramid=False, out_indices=None)` and `forward_head(features, train=None)`.
    """

    def __call__(self, images, train=None):
        """Images [B, H, W, C], normalised floats -> logits [B, num_classes], or features [B, C] if num_classes is 0."""
        if images.ndim != 4 or images.shape[-1] != self.config.in_chans:
            message = f"images of shape {tuple(images.shape)} given; [B, H, W, {self.config.in_chans}] is wanted."
            if images.ndim == 4 and images.shape[1] == self.config.in_chans:
                message += " They look channels-first: images.transpose(0, 2, 3, 1)."
            raise InputError(message)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            told = f"images are {images.dtype}: normalised floats are wanted, as vj.preprocessing(model) gives"
            raise InputError(f"{told}, or (images / 255 - mean) / std")
        return self.forward_head(self.forward_features(images, train), train)

    def dense_logits(self, images):
        """Logits of every position of the last map, [B, h, w, num_classes]: the head, with one position to pool.

        Where a token before the patches is read for the whole image, the patch stands in its place.

        Raises:
          InputError: the model has no single last map, or no classifier.
        """
        x = self.forward_features(images)
        if isinstance(x, tuple | list) or not self.config.num_classes:
            raise InputError(f"{type(self).__name__} has no logits of single positions: no one last map, or no head")
        B, *grid, C = x.shape
        if x.ndim == 4:
            x = x.reshape(-1, 1, 1, C)
        else:
            grid = getattr(self, "grid", None) or [n // self.feature_info[-1].reduction for n in images.shape[1:3]]
            prefix = x.shape[1] - math.prod(grid)
            x = jnp.repeat(x[:, prefix:].reshape(-1, 1, C), prefix + 1, axis=1)
        return self.forward_head(x).reshape(B, *grid, -1)

    def reset_classifier(self, num_classes, seed=0):
        """Gives the model a new classifier with initial values, or none for num_classes=0; everything else stays.

        Returns:
          A new model; this one is left as it is.
        """
        fields = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        fresh = create_model(self.name, abstract=True, **{**fields, "num_classes": num_classes})
        graphdef, wanted = nnx.split(fresh)
        ours = dict(nnx.to_flat_state(nnx.state(self)))
        flat = []
        for path, variable in nnx.to_flat_state(wanted):
            own = ours.get(path)
            kept = own is not None and not ".".join(map(str, path)).startswith(tuple(f"{c}." for c in self.classifier))
            flat.append((path, own if kept else variable))
        return fill(nnx.merge(graphdef, nnx.from_flat_state(flat)), seed)

    def two_heads(self, x, y, train=None):
        """Logits of `head` for x and of `head_dist` for y, [B, C] each: a pair while training, their mean otherwise.

        Without heads, the mean of the two.
        """
        if self.head:
            x, y = self.head(x), self.head_dist(y)
            if train:
                return x, y
        return (x + y) / 2

    def reparameterize(self):
        """A copy for deployment: the same values up to rounding, the batch norms merged into the layers beside them.

        An abstract model gives an abstract copy, for weights that were saved from one (names "ours").

        Raises:
          InputError: this family has nothing to merge.
        """
        return reparameterized(self)

    def run_stages(self, x, train=None):
        """x through `self.stages` -> a list of the maps after each."""
        maps = []
        for stage in self.stages:
            x = stage(x, train)
            maps.append(x)
        return maps

    def indices(self, out_indices):
        """The maps asked for, as indices into `feature_info`; None means all, negative ones count from the end.

        Raises:
          InputError: an index out of range.
        """
        n = len(self.feature_info)
        out_indices = range(n) if out_indices is None else out_indices
        for i in out_indices:
            if not -n <= i < n:
                raise InputError(f"out_indices={tuple(out_indices)}: {i} is out of range, the model has {n} maps")
        return tuple(i % n for i in out_indices)

    def check_size(self, images):
        """Raises `InputError` unless images [B, H, W, C] have the size that the model was built for."""
        wanted = pair(self.config.img_size)
        if tuple(images.shape[1:3]) != wanted:
            raise InputError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels, the model is for {wanted[0]} x {wanted[1]}: "
                f"create_model(..., img_size={tuple(images.shape[1:3])})"
            )


class StagesModel(Model):
    """A model of a stem, `stages` of blocks, perhaps a last convolution `final_conv`, and a pooled `head`."""

    def finished(self, maps, train, pyramid, out_indices):
        """What `forward_features` gives from the maps [B, H, W, C] after the stages."""
        if self.final_conv:
            maps[-1] = self.final_conv(maps[-1], train)
        return [maps[i] for i in self.indices(out_indices)] if pyramid else maps[-1]

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        return self.head(x, train)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each block, the head."""
        return block_groups(r"^stem\.", numbered("stages", self.stages))


class Stage(nnx.Module):
    """The way down to a resolution, or None, then its blocks: [B, H, W, Cin] -> [B, H/r, W/r, Cout]."""

    def __init__(self, downsample, blocks):
        self.downsample, self.blocks = downsample, blocks

    def __call__(self, x, train=None):
        return self.blocks(self.downsample(x, train) if self.downsample else x, train)


class StagedModel(Model):
    """A stem, stages at falling resolutions, a head: most hierarchical models are this and a block.

    A family sets `stem(images)`, `stages` (a list of `Stage`) and `head(map, train)`; `norm_pre`, if any, normalises
    the last map. One whose stem has batch norms sets `run_stem` to hand it the train mode.
    """

    norm_pre = None

    def run_stem(self, images, train=None):
        """Images [B, H, W, C] -> the first stage's map."""
        return self.stem(images)

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> map [B, H/32, W/32, C].

        pyramid=True gives the maps after the stages in `out_indices` instead, not normalised.
        """
        maps = self.run_stages(self.run_stem(images, train), train)
        if pyramid:
            return [maps[i] for i in self.indices(out_indices)]
        return normalise(self.norm_pre, maps[-1], train)

    def forward_head(self, x, train=None):
        """Map [B, H, W, C] -> logits [B, num_classes], or pooled features [B, C] without a head."""
        return self.head(x, train)

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the stem, each block, with the way down to it, and the head."""
        groups, block = [(r"^stem\.", 0)], 1
        for i, stage in enumerate(self.stages):
            groups.append((rf"^stages\.{i}\.downsample\.", block))
            for j in range(len(stage.blocks)):
                groups.append((rf"^stages\.{i}\.blocks\.{j}\.", block))
                block += 1
        return (*groups, (r"", block))


class ClassTokenModel(Model):
    """A model whose head reads the class token, the first; a family sets `head`, `grid` and `pos_embed` of patches."""

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or the class token [B, C] without a head."""
        x = dropout(x[:, 0], self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def resample(self, leaf, array):
        """A parameter made for another image size, at this one's."""
        return resample_positions(array, self.grid) if leaf == "pos_embed" else array


class PatchModel(Model):
    """Patches as tokens, blocks that know each one's place, a norm, the mean of all tokens, a head (MLP-Mixer).

    Bound to the image size by the blocks. Every block has the same drop-path rate, and layers start as in timm.

    Args:
      config: a `ModelConfig` with patch_size, embed_dim, depth and scan_blocks.
      block: index -> block of tokens [B, N, C].
      norm: `(dim) -> module`, the last one.
    """

    classifier = ("head",)

    def __init__(self, config, block, norm):
        c, kw = config, dict(dtype=config.dtype)
        self.config, self.grid, reduction = c, patch_grid(c.img_size, c.patch_size), pair(c.patch_size)[0]
        self.patch_embed = PatchEmbed(
            c.in_chans, c.embed_dim, c.patch_size, init=lecun_normal, bias_init=zeros, **kw
        )  # fmt: skip
        self.blocks = Stack(block, (c.drop_path_rate,) * c.depth, scan=c.scan_blocks, remat=c.remat)
        self.norm = norm(c.embed_dim)
        self.head = Linear(c.embed_dim, c.num_classes, init=zeros, **kw) if c.num_classes else None
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", c.embed_dim, reduction) for i in range(c.depth))

    def forward_features(self, images, train=None, pyramid=False, out_indices=None):
        """Images [B, H, W, C] -> tokens [B, N, C], normalised.

        pyramid=True gives the maps [B, H/p, W/p, C] after the blocks in `out_indices` instead, not normalised.
        """
        x = self.patch_embed(images)
        B, H, W, C = x.shape
        if self.grid != (H, W):
            here = f"images give {(H, W)} patches, the model mixes {self.grid}"
            raise InputError(f"{here}: create_model(..., img_size={images.shape[1:3]})")
        x = x.reshape(B, H * W, C)
        if pyramid:
            _, maps = self.blocks(x, train, collect=self.indices(out_indices))
            return [m.reshape(B, H, W, C) for m in maps]
        return self.norm(self.blocks(x, train))

    def forward_head(self, x, train=None):
        """Tokens -> logits [B, num_classes], or pooled features [B, C] without a head."""
        x = dropout(x.mean(axis=1), self.config.drop_rate, train)
        return self.head(x) if self.head else x

    def layer_groups(self):
        """(pattern, group) for layer-wise decay: the embedding, each block, the head."""
        return block_groups(r"^patch_embed", {"blocks": self.blocks})


def block_groups(stem, stacks):
    """(pattern, group) for layer-wise decay where a block is a group: the stem, each block, the rest.

    Args:
      stem: pattern of the stem's parameters.
      stacks: {name in the model: stack of blocks}, in order.
    """
    groups, count = [(stem, 0)], 1
    for name, blocks in stacks.items():
        groups += [(rf"^{re.escape(name)}\.{j}\.", count + j) for j in range(len(blocks))]
        count += len(blocks)
    return (*groups, (r"", count))


def numbered(name, stacks):
    """[stack, ...] -> {"name.0": stack, ...}, as the members of a list are named."""
    return {f"{name}.{i}": stack for i, stack in enumerate(stacks)}


def stage_groups(model, stem):
    """(pattern, group) for layer-wise decay where a stage is a group: the stem, each of `model.stages`, the rest.

    Args:
      stem: pattern of the stem's parameters, in `stages.0` too if some lie there.
    """
    stages = tuple((rf"^stages\.{i}\.", i + 1) for i in range(len(model.stages)))
    return ((stem, 0), *stages, (r"", len(stages) + 1))


def patch_grid(img_size, patch_size, drop_edge=False):
    """Rows and columns of whole patches in an image; sizes are ints or (height, width).

    Args:
      drop_edge: whether pixels beyond the last whole patch may be left over.

    Raises:
      InputError: patches do not tile the image; with the nearest size that they tile.
    """
    sizes = tuple(zip(pair(img_size), pair(patch_size), strict=True))
    near = tuple(max(round(side / patch), 1) * patch for side, patch in sizes)
    near = near[0] if isinstance(img_size, int) and near[0] == near[1] else near
    whole = all(side % patch == 0 or (drop_edge and side > patch) for side, patch in sizes)
    check(whole, f"img_size={img_size} is not a multiple of patch_size={patch_size}; the nearest is {near}")
    return tuple(side // patch for side, patch in sizes)


def check_stages(config, *fields):
    """Raises InputError unless these fields have one number a stage, and heads divide channels."""
    for field in fields:
        value = getattr(config, field)
        check(len(value) == len(config.depths), f"depths={config.depths} and {field}={value} differ in length")
    if "num_heads" in fields:
        fits = all(dim % heads == 0 for dim, heads in zip(config.embed_dims, config.num_heads, strict=True))
        check(fits, f"embed_dims={config.embed_dims} must be multiples of num_heads={config.num_heads}, stage by stage")
