"""Automatic augmentation on the host: RandAugment and DeiT III's 3-Augment."""

import dataclasses
import math

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vision_jax.data.host_ops import check_range, interpolation_of
from vision_jax.errors import InputError

FULL = 10  # the magnitude that the ops' scales are given for


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al., 2019, arXiv 1909.13719) as in timm's "rand-m9-mstd0.5-inc1", the usual recipe.

    `layers` times one of fifteen ops is drawn, with replacement, and applied with probability `prob` at a magnitude
    drawn from a normal distribution around `magnitude`, clipped to 0..`max_magnitude`. With `increasing` a larger
    magnitude is a stronger change for every op; without it posterize, solarize and the four enhancements run on the
    scales of the original code. `fill` is the colour that geometry uncovers (the ImageNet mean). Some recipes of
    TensorFlow's code ask for magnitudes above 10, which timm clips.
    """

    layers: int = 2
    magnitude: float = 9
    std: float = 0.5
    increasing: bool = True
    prob: float = 0.5
    interpolation: str = "bicubic"
    fill: tuple = (124, 116, 104)
    max_magnitude: float = FULL

    def __post_init__(self):
        check_range("rand_augment: layers", self.layers, 0, 100)
        check_range("rand_augment: max_magnitude", self.max_magnitude, 0, 3 * FULL)
        check_range("rand_augment: magnitude", self.magnitude, 0, self.max_magnitude)
        check_range("rand_augment: std", self.std, 0, math.inf)
        check_range("rand_augment: prob", self.prob, 0, 1)
        interpolation_of(self.interpolation)
        if not isinstance(self.layers, int) or len(self.fill) != 3:
            raise InputError(
                f"rand_augment: layers is an integer, fill three of them: given {self.layers}, {self.fill}"
            )

    def __call__(self, image, rng):
        for name in rng.choice(sorted(RAND_AUGMENT_OPS), self.layers):
            if rng.random() < self.prob:
                level = min(max(rng.normal(self.magnitude, self.std), 0), self.max_magnitude) / FULL
                image = RAND_AUGMENT_OPS[name](self, image, level, rng)
        return image

    def warp(self, image, matrix):
        """Inverse affine map (a, b, c, d, e, f): the output at (x, y) comes from (ax + by + c, dx + ey + f)."""
        resample = interpolation_of(self.interpolation)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=self.fill_of(image))

    def fill_of(self, image):
        """The fill in the image's own mode."""
        return tuple(self.fill) if image.mode == "RGB" else round(sum(self.fill) / 3)


def _either_sign(value, rng):
    return value if rng.random() < 0.5 else -value


def _rotate(op, image, level, rng):
    angle = _either_sign(30 * level, rng)
    return image.rotate(angle, interpolation_of(op.interpolation), fillcolor=op.fill_of(image))


def _shear_x(op, image, level, rng):
    return op.warp(image, (1, _either_sign(0.3 * level, rng), 0, 0, 1, 0))


def _shear_y(op, image, level, rng):
    return op.warp(image, (1, 0, 0, _either_sign(0.3 * level, rng), 1, 0))


def _translate_x(op, image, level, rng):
    return op.warp(image, (1, 0, _either_sign(0.45 * level, rng) * image.width, 0, 1, 0))


def _translate_y(op, image, level, rng):
    return op.warp(image, (1, 0, 0, 0, 1, _either_sign(0.45 * level, rng) * image.height))


def _posterize(op, image, level, rng):
    bits = 4 - int(4 * level) if op.increasing else int(4 * level)
    kept = 256 - (1 << (8 - bits))  # a mask; ImageOps.posterize refuses 0 bits, which older Pillows made black
    return image.point([i & kept for i in range(256)] * len(image.getbands()))


def _solarize(op, image, level, rng):
    threshold = min(256, int(256 * level))
    return ImageOps.solarize(image, 256 - threshold if op.increasing else threshold)


def _solarize_add(op, image, level, rng):
    add = min(128, int(110 * level))
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * len(image.getbands()))


def _enhance(enhancer):
    def apply(op, image, level, rng):
        factor = max(0.1, 1 + _either_sign(0.9 * level, rng)) if op.increasing else 1.8 * level + 0.1
        return enhancer(image).enhance(factor)

    return apply


RAND_AUGMENT_OPS = {
    "auto_contrast": lambda op, image, level, rng: ImageOps.autocontrast(image),
    "equalize": lambda op, image, level, rng: ImageOps.equalize(image),
    "invert": lambda op, image, level, rng: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """3-Augment (DeiT III, Touvron et al., 2022, arXiv 2204.07118, section 3): grey, solarise or blur, one of them.

    The paper's recipe has a crop and a flip before it and `color_jitter(0.3, 0.3, 0.3)` after it.
    """

    def __call__(self, image, rng):
        which = rng.integers(3)
        if which == 0:
            return image.convert("L").convert(image.mode)
        if which == 1:
            return ImageOps.solarize(image, 128)
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
