"""Operations on one image on the host: `op(image, rng) -> image`, a `PIL.Image` in and out.

Geometry follows torchvision's and timm's transforms, rounding included, because reference accuracies come from them.
Random ops draw from the NumPy generator they are given and from nothing else.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vision_jax.data.decode import from_array, open_image, to_array, to_channels
from vision_jax.errors import InputError, unknown

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
PADDINGS = ("constant", "edge", "reflect", "symmetric")


def interpolation_of(name):
    """Name -> Pillow's filter, which widens with the reduction, that is, antialiases; unknown names are errors."""
    if name not in INTERPOLATIONS:
        raise unknown("interpolation", name, INTERPOLATIONS)
    return INTERPOLATIONS[name]


def pair(what, size):
    """A size n or (height, width) of positive integers -> (height, width)."""
    sizes = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sizes) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise InputError(f"{what} is a positive integer or a pair (height, width) of them: given {size!r}")
    return sizes


def check_range(what, value, low, high):
    """Raises InputError unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{what} lies in [{low}, {high}]: given {value!r}")


@dataclasses.dataclass(frozen=True)
class Decode:
    """Bytes or array -> an upright 8-bit image of 3 (RGB) or 1 (grey) channels; the first op for encoded images."""

    channels: int = 3

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise InputError(f"decode: channels is 1 or 3: given {self.channels!r}")

    def __call__(self, image, rng):
        return to_channels(open_image(image) if isinstance(image, bytes) else from_array(image), self.channels)


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes the shorter side to an integer `size`, keeping the ratio, or to exactly a (height, width)."""

    size: int | tuple
    interpolation: str = "bicubic"

    def __post_init__(self):
        pair("resize: size", self.size)
        interpolation_of(self.interpolation)

    def __call__(self, image, rng):
        if isinstance(self.size, int):
            shorter = min(image.size)
            width, height = (self.size if side == shorter else int(self.size * side / shorter) for side in image.size)
        else:
            height, width = self.size
        return image.resize((width, height), interpolation_of(self.interpolation))


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Cuts the middle out; what lies outside the image is black."""

    size: int | tuple

    def __post_init__(self):
        pair("center_crop: size", self.size)

    def __call__(self, image, rng):
        height, width = pair("size", self.size)
        left, top = _middle(image.width, width), _middle(image.height, height)
        return image.crop((left, top, left + width, top + height))


def _middle(length, size):
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


@dataclasses.dataclass(frozen=True)
class Pad:
    """Widens every side by `pixels`. `mode`: constant (`fill`), edge, reflect or symmetric, as in `numpy.pad`."""

    pixels: int
    mode: str = "constant"
    fill: int = 0

    def __post_init__(self):
        check_range("pad: pixels", self.pixels, 0, math.inf)
        check_range("pad: fill", self.fill, 0, 255)
        if self.mode not in PADDINGS:
            raise unknown("padding mode", self.mode, PADDINGS)

    def __call__(self, image, rng):
        widths = ((self.pixels, self.pixels), (self.pixels, self.pixels), (0, 0))
        options = {"constant_values": self.fill} if self.mode == "constant" else {}
        return from_array(np.pad(to_array(image), widths, self.mode, **options))


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A window of `size` at a uniform position, after padding every side by `padding` (CIFAR: 32 and 4)."""

    size: int | tuple
    padding: int = 0
    mode: str = "constant"

    def __post_init__(self):
        pair("random_crop: size", self.size)
        Pad(self.padding, self.mode)

    def __call__(self, image, rng):
        if self.padding:
            image = Pad(self.padding, self.mode)(image, rng)
        height, width = pair("size", self.size)
        if image.height < height or image.width < width:
            raise InputError(
                f"random_crop: size {height}x{width} is larger than the image, {image.height}x{image.width} with its"
                " padding: resize before it or pad more"
            )
        top = int(rng.integers(image.height - height + 1))
        left = int(rng.integers(image.width - width + 1))
        return image.crop((left, top, left + width, top + height))


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and aspect ratio, resized to `size` (Going Deeper with Convolutions, 2014, section 6).

    `scale` bounds the window's share of the area, `ratio` its width over height. Ten windows are tried, then the
    largest central one that keeps the ratio is taken.
    """

    size: int | tuple
    scale: tuple = (0.08, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __post_init__(self):
        pair("random_resized_crop: size", self.size)
        interpolation_of(self.interpolation)
        for what, bounds, highest in (("scale", self.scale, 1), ("ratio", self.ratio, math.inf)):
            numbers = isinstance(bounds, tuple | list) and len(bounds) == 2
            if not (numbers and 0 < bounds[0] <= bounds[1] <= highest):
                raise InputError(f"random_resized_crop: {what} is (low, high) with 0 < low <= high: given {bounds!r}")

    def __call__(self, image, rng):
        height, width = pair("size", self.size)
        box = self.window(image.width, image.height, rng)
        return image.crop(box).resize((width, height), interpolation_of(self.interpolation))

    def window(self, width, height, rng):
        """The window (left, top, right, bottom) in an image of width x height."""
        low, high = self.ratio
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * high)))
        h = max(1, min(height, round(width / low)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with probability `prob`."""

    prob: float = 0.5

    def __post_init__(self):
        check_range("flip: prob", self.prob, 0, 1)

    def __call__(self, image, rng):
        return ImageOps.mirror(image) if rng.random() < self.prob else image


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Scales brightness, contrast and saturation, in random order, each by a factor uniform in [1 - x, 1 + x]."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_range(f"color_jitter: {field.name}", getattr(self, field.name), 0, math.inf)

    def __call__(self, image, rng):
        strengths = (self.brightness, self.contrast, self.saturation)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for i in rng.permutation(3):
            if strengths[i]:
                factor = rng.uniform(max(0.0, 1 - strengths[i]), 1 + strengths[i])
                image = enhancers[i](image).enhance(factor)
        return image
