"""Operations on a batch inside the jitted step: `op(key, batch) -> batch`, pure JAX, shapes unchanged.

A batch is a dictionary with "image" [B, H, W, C] and "label" [B]. It may be sharded over devices along B: one draw
serves the whole batch or each row has its own, so the values do not depend on the number of devices.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from vision_jax.data.host_ops import check_range
from vision_jax.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Normalize:
    """uint8 -> float32 as (image / 255 - mean) / std; `mean` and `std` of one value or one a channel."""

    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    random = False

    def __post_init__(self):
        for what, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple | list) or not all(isinstance(v, int | float) for v in values):
                raise InputError(f"normalize: {what} is a tuple of numbers, one or one a channel: given {values!r}")
        if min(self.std) <= 0:
            raise InputError(f"normalize: std is above zero: given {self.std!r}")

    def __call__(self, key, batch):
        if batch["image"].dtype != jnp.uint8:
            raise InputError(
                f"normalize: the images are uint8 before it, and it comes once: given {batch['image'].dtype}"
            )
        channels = batch["image"].shape[-1]
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(f"normalize: {what} has {len(values)} values for images of {channels} channels")
        image = batch["image"].astype(jnp.float32) / 255
        image = (image - jnp.array(self.mean, jnp.float32)) / jnp.array(self.std, jnp.float32)
        return {**batch, "image": image}


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Fills one rectangle of an image with unit normal noise, with probability `prob` for each image.

    Random Erasing (Zhong et al., 2017, arXiv 1708.04896) in timm's "pixel" mode. The rectangle's share of the area is
    uniform in [min_area, max_area], the logarithm of its height over width uniform in +-log(min_aspect); the first of
    ten draws that fits in the image is taken, and none if none fits.
    """

    prob: float = 0.25
    min_area: float = 0.02
    max_area: float = 1 / 3
    min_aspect: float = 0.3
    random = True

    def __post_init__(self):
        check_range("random_erasing: prob", self.prob, 0, 1)
        check_range("random_erasing: max_area", self.max_area, 0, 1)
        check_range("random_erasing: min_area", self.min_area, 0, self.max_area)
        if not 0 < self.min_aspect <= 1:
            raise InputError(f"random_erasing: min_aspect lies in (0, 1]: given {self.min_aspect!r}")

    def __call__(self, key, batch):
        image = batch["image"]
        noise_key, box_key, prob_key = jax.random.split(key, 3)
        boxes = self.boxes(box_key, image.shape)
        erase = jax.random.bernoulli(prob_key, float(self.prob), (image.shape[0], 1, 1)) & inside(boxes, image.shape)
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        return {**batch, "image": jnp.where(erase[..., None], noise, image)}

    def boxes(self, key, shape):
        """Rectangles (top, left, height, width), each [B] int32, for images of `shape`; empty where no draw fits."""
        B, H, W, _ = shape
        area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
        area = H * W * jax.random.uniform(area_key, (B, 10), minval=self.min_area, maxval=self.max_area)
        bound = math.log(self.min_aspect)
        aspect = jnp.exp(jax.random.uniform(aspect_key, (B, 10), minval=bound, maxval=-bound))
        heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        fits = (heights < H) & (widths < W)
        rows, first = jnp.arange(B), jnp.argmax(fits, axis=1)
        height = jnp.where(fits.any(axis=1), heights[rows, first], 0)
        width = jnp.where(fits.any(axis=1), widths[rows, first], 0)
        top = jax.random.randint(top_key, (B,), 0, H - height + 1)
        left = jax.random.randint(left_key, (B,), 0, W - width + 1)
        return top, left, height, width


def inside(boxes, shape):
    """Which pixels lie in the boxes (top, left, height, width), each [...]: a mask [..., H, W]."""
    top, left, height, width = (jnp.asarray(x)[..., None, None] for x in boxes)
    rows, columns = jnp.arange(shape[1])[:, None], jnp.arange(shape[2])[None, :]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of each image with a partner of its batch.

    One lambda, one choice and one box a batch, as in timm's "batch" mode. `mixup` and `cutmix` are the alphas of their
    Beta(alpha, alpha) distributions, 0 turns one off; with both, CutMix is chosen with probability `switch_prob`. With
    probability 1 - `prob` the batch stays as it is.

    Adds "label_mixed" [B], the partner's label, and "mix_weight" [B] float32, the weight of "label": lambda, for CutMix
    the share of the area that stayed. The loss is mix_weight * loss(label) + (1 - mix_weight) * loss(label_mixed).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch_prob: float = 0.5
    prob: float = 1.0
    random = True

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            check_range(f"mix: {name}", getattr(self, name), 0, math.inf)
        check_range("mix: switch_prob", self.switch_prob, 0, 1)
        check_range("mix: prob", self.prob, 0, 1)
        if not (self.mixup or self.cutmix):
            raise InputError("mix: give mixup=alpha, cutmix=alpha or both; both are 0")

    def __call__(self, key, batch):
        image, label = batch["image"], batch["label"]
        apply_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
        share = jnp.ones((1, image.shape[1], image.shape[2], 1))  # of each pixel that the image keeps
        weight = jnp.float32(1)
        if self.mixup:
            weight = jax.random.beta(mixup_key, self.mixup, self.mixup)
            share = share * weight
        if self.cutmix:
            lam = jax.random.beta(cutmix_key, self.cutmix, self.cutmix)
            kept = 1.0 - inside(cutmix_box(box_key, lam, image.shape), image.shape)[None, :, :, None]
            use_cutmix = jax.random.bernoulli(switch_key, self.switch_prob if self.mixup else 1.0)
            share = jnp.where(use_cutmix, kept, share)
            weight = jnp.where(use_cutmix, kept.mean(), weight)
        mixed = jax.random.bernoulli(apply_key, self.prob)
        share, weight = jnp.where(mixed, share, 1), jnp.where(mixed, weight, 1)
        share = share.astype(image.dtype)
        return {
            **batch,
            "image": image * share + partners(image) * (1 - share),
            "label_mixed": partners(label),
            "mix_weight": jnp.full(label.shape[:1], weight, jnp.float32),
        }


GROUP = 16  # examples


def partners(x):
    """x [B, ...] with examples i and j swapped: eight apart in each group of sixteen; or, of other batches, flipped.

    A device's share of a batch is whole groups as a rule, so that no image goes to another one, as it would if the
    batch were flipped; nor is an image, repeated a few times in a row, its own partner.
    """
    if len(x) % GROUP:
        return x[::-1]
    return x.reshape(-1, 2, GROUP // 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def cutmix_box(key, lam, shape):
    """CutMix's box (top, left, height, width) of about 1 - lam of the area around a uniform centre, clipped."""
    H, W = shape[1:3]
    ratio = jnp.sqrt(1 - lam)
    row_key, column_key = jax.random.split(key)
    top, height = _clipped(jax.random.randint(row_key, (), 0, H), jnp.int32(H * ratio), H)
    left, width = _clipped(jax.random.randint(column_key, (), 0, W), jnp.int32(W * ratio), W)
    return top, left, height, width


def _clipped(centre, length, size):
    start, stop = jnp.clip(centre - length // 2, 0, size), jnp.clip(centre + length // 2, 0, size)
    return start, stop - start
