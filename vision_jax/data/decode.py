"""Encoded bytes or an array of any of the usual kinds -> one 8-bit image, upright, with the asked number of channels.

Between the host ops an image is a `PIL.Image` of mode "RGB" or "L": Pillow's resampling is the one that the published
accuracies were measured with.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from vision_jax.errors import InputError


class ImageError(InputError):
    """This one image cannot be used (as against a mistake in the ops): what `on_error="replace"` replaces."""


def open_image(encoded):
    """Bytes of a JPEG, PNG, WebP, BMP, TIFF or GIF file -> a loaded `PIL.Image`, turned as its EXIF tag says.

    Raises:
      ImageError: the bytes are not an image, are cut short, or hold more pixels than Pillow deems safe.
    """
    if not encoded:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image (starts with {bytes(encoded[:16])!r})") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        # Pillow's plugins say "damaged" in all of these ways, broken PNG chunks being a SyntaxError
        raise ImageError(f"damaged image: {error}") from error


def to_channels(image, channels):
    """A `PIL.Image` of any mode -> mode "RGB" (3 channels) or "L" (1 channel).

    Transparency is dropped, not blended, as `convert("RGB")` does everywhere else. 16-bit greys keep their upper byte:
    Pillow's own conversion would clip all above 255 to white.

    Raises:
      ImageError: a floating-point image, which has no range to scale from.
    """
    if image.mode == "F":
        raise ImageError("a floating-point image: its range is unknown; store it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.clip(np.asarray(image, np.int32), 0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    try:
        return image.convert("RGB" if channels == 3 else "L")
    except ValueError as error:
        raise ImageError(f"mode {image.mode!r} cannot be converted: {error}") from error


def from_array(array):
    """uint8 array [H, W], [H, W, 1] or [H, W, 3] -> `PIL.Image`; anything else is an InputError."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(f"an image array is uint8 [H, W, 1] or [H, W, 3]: given {array.dtype} {list(array.shape)}")
    return Image.fromarray(array)


def to_array(image):
    """`PIL.Image` of mode "L" or "RGB" -> uint8 array [H, W, 1] or [H, W, 3]."""
    array = np.array(image)
    return array if array.ndim == 3 else array[:, :, None]
