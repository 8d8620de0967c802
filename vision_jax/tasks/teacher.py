"""A trained model that a loss asks: for the class of an image, or for that of each of its patches."""

import functools

import jax
import jax.numpy as jnp

from vision_jax import registry
from vision_jax.functional import apply, split
from vision_jax.layers.conv import pair


@functools.cache
def make_teacher(name, fields):
    """The `Teacher` of a registered name and of fields of its config, ((name, value), ...).

    Raises:
      InputError: no such model or field.
    """
    return Teacher(registry.create_model(name, abstract=True, **dict(fields)))


class Teacher:
    """A model without its arrays, asked about a student's images, which may be of another size and normalisation.

    Args:
      model: abstract.
    """

    def __init__(self, model):
        self.static, self.config = split(model)[0], model.config

    def shapes(self):
        """Of its "variables", and of "scale" and "shift" [C], which turn the student's images into its own."""
        channels = jax.ShapeDtypeStruct((self.config.in_chans,), jnp.float32)
        return {"variables": self.static.shapes, "scale": channels, "shift": channels}

    def logits(self, frozen, images):
        """Of each image [B, H, W, C]: [B, K]. `frozen`: arrays in the shapes of `shapes()`."""
        return self._call(frozen, images, "__call__")

    def dense_logits(self, frozen, images):
        """Of each position of its last map: [B, h, w, K]."""
        return self._call(frozen, images, "dense_logits")

    def _call(self, frozen, images, method):
        images = images * frozen["scale"].astype(images.dtype) + frozen["shift"].astype(images.dtype)
        size = (images.shape[0], *pair(self.config.img_size), images.shape[-1])
        if images.shape != size:
            images = jax.image.resize(images, size, "cubic")
        return apply(self.static, frozen["variables"], images, method=method)[0]
