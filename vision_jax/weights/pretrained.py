"""Models with their published weights, and the preprocessing that those expect."""

import dataclasses
import math

import numpy as np

from vision_jax import registry
from vision_jax.data import split_ops
from vision_jax.data.decode import to_array, to_channels
from vision_jax.errors import InputError
from vision_jax.layers.conv import pair
from vision_jax.weights.load import load_weights


def create_model(name, *, pretrained=False, abstract=False, seed=0, **fields):
    """A model by name.

    Args:
      name: a name of `list_models()`, or NAME.TAG for certain published weights.
      pretrained: load the published weights, those of the tag or the default ones, from the Hugging Face hub. Tables of
        positions are resampled to another `img_size`; a head of another `num_classes` keeps its initial values.
      abstract: shapes only, no arrays: milliseconds. Fill it with `load_weights` or `init`.
      seed: seed of the initial parameters.
      **fields: fields of the model's config to replace, as num_classes=10, img_size=448, depths=(1, 1, 2, 1).

    Returns:
      An `nnx.Module`; call it with images [B, H, W, C].

    Raises:
      InputError: unknown model, tag or field, values that do not fit together, weights that cannot be had.
    """
    if not pretrained:
        return registry.create_model(name, abstract=abstract, seed=seed, **fields)
    if abstract:
        raise InputError(
            "abstract=True makes shapes only: pretrained=True has nowhere to load to; leave one of them out"
        )
    weights = _weights(name)
    if weights.url:
        raise InputError(
            f"pretrained=True: the weights of {name} are a pickle, {weights.url}, which is not opened here; "
            "save its tensors as safetensors, and pass that file to load_weights(model, ...)"
        )
    if not weights.hub:
        raise InputError(
            f"pretrained=True: no weights of {name} are published; pass a file to load_weights(model, ...)"
        )
    fields = {"num_classes": weights.num_classes, **fields}
    model = registry.create_model(name, abstract=True, **fields)
    same = fields["num_classes"] == weights.num_classes
    return load_weights(model, f"hf-hub:{weights.hub}", head="strict" if same else "skip", seed=seed)


def _weights(name):
    info = registry.model_info(name)
    return info.tags[name.partition(".")[2] or info.default_tag]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input; call it with a `PIL.Image`, encoded bytes or a uint8 array [H, W, C].

    Attributes:
      size: (height, width) of the input, in pixels.
      resize: length of the shorter side before the centre crop, or (height, width) whatever the image's shape.
      interpolation: of the antialiased resize.
      mean, std: of normalisation, for images in 0..1.
      channels: 3, or 1 for grey.
    """

    size: tuple
    resize: int | tuple
    interpolation: str
    mean: tuple
    std: tuple
    channels: int = 3

    @property
    def ops(self):
        """The same as a list of operations for a training config."""
        return (
            f"decode(channels={self.channels})",
            f"resize({self.resize}, interpolation={self.interpolation!r})",
            f"center_crop({self.size})",
            f"normalize(mean={self.mean}, std={self.std})",
        )

    def __call__(self, image):
        """One image -> float32 [height, width, channels]; stack them to a batch."""
        host_ops, _ = split_ops(self.ops)
        image = to_array(to_channels(image, self.channels)) if hasattr(image, "convert") else image
        pixels = host_ops({"image": image}, None)["image"].astype(np.float32) / 255
        return (pixels - np.float32(self.mean)) / np.float32(self.std)


def preprocessing(model):
    """The preprocessing that a model's published weights expect, at the model's own input size.

    Args:
      model: a model made by `create_model`, or a name, or NAME.TAG.
    """
    name = model if isinstance(model, str) else model.name
    weights = _weights(name)
    size = pair(weights.img_size) if isinstance(model, str) else pair(model.config.img_size)
    channels = 3 if isinstance(model, str) else model.config.in_chans
    mean, std = (weights.mean, weights.std) if len(weights.mean) == channels else ((0.5,), (0.5,))
    resize = tuple(math.floor(side / weights.crop_pct) for side in size)
    resize = resize if weights.crop_mode == "squash" else min(resize)
    return Preprocessing(size, resize, weights.interpolation, mean, std, channels)
