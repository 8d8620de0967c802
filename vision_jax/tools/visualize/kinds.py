"""The kinds of pictures by name: each of a model and photographs."""

import numpy as np

from vision_jax.errors import InputError, unknown
from vision_jax.functional import jit
from vision_jax.tools.visualize import figures
from vision_jax.tools.visualize.attention import attention_maps, placed_keys
from vision_jax.tools.visualize.features import feature_colours
from vision_jax.tools.visualize.gradcam import default_layer, grad_cam, has_map
from vision_jax.tools.visualize.grids import cell
from vision_jax.tools.visualize.receptive_field import effective_side, receptive_field
from vision_jax.tools.visualize.relative_bias import has_bias, relative_biases
from vision_jax.tools.visualize.rollout import refusal, rollout
from vision_jax.weights.pretrained import preprocessing

MAPS = 5  # of the pyramid, at most, in one picture


def prepare(model, photos):
    """Photographs as the model takes them and as people do.

    Args:
      model: a model.
      photos: `PIL.Image`s, encoded bytes or uint8 arrays [H, W, C].

    Returns:
      (images [B, H, W, C] float32, normalised; the same pixels, uint8 [B, H, W, 3]).
    """
    how = preprocessing(model)
    images = np.stack([how(photo) for photo in photos])
    pixels = np.clip(255 * (images * np.float32(how.std) + np.float32(how.mean)) + 0.5, 0, 255).astype(np.uint8)
    return images, np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def picture(model, kind, photos, *, layers="*", query=None, label=None, title=None):
    """A picture of one kind.

    Args:
      model: a model with parameters.
      kind: "attention" (of the first photograph), "rollout", "bias", "pca", "erf" or "gradcam".
      photos: what `prepare` takes; "bias" needs none.
      layers: a pattern of the layers' names, for attention and bias.
      query: "class", or (down, right) in 0..1 on the image, for attention and rollout.
      label: the class for Grad-CAM; the likeliest by default.
      title: goes before the figure's own; the model's name by default.

    Returns:
      A `PIL.Image`, 900 pixels wide.

    Raises:
      InputError: an unknown kind, one that this model cannot give, no photographs.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind != "bias" and not len(photos):
        raise InputError(f"kind {kind!r} needs at least one image")
    if not _gives(model, kind):
        can = ", ".join(possible(model))
        raise InputError(f"{model.name} cannot give {kind!r}: {KINDS[kind][1]}. It can give {can}")
    images, pixels = prepare(model, photos) if len(photos) else (None, None)
    options = dict(layers=layers, query=query, label=label, title=model.name if title is None else title)
    return KINDS[kind][0](model, images, pixels, **options)


def possible(model):
    """The kinds that a model can give, in order; nothing is run."""
    return [kind for kind in KINDS if _gives(model, kind)]


def _gives(model, kind):
    images = np.broadcast_to(np.float32(0), (1, *preprocessing(model).size, model.config.in_chans))
    match kind:
        case "attention":
            return bool(placed_keys(model, images))
        case "rollout":
            return refusal(model, placed_keys(model, images)) is None
        case "bias":
            return has_bias(model)
        case "gradcam":
            return bool(model.config.num_classes) and has_map(model, images, default_layer(model))
    return True


def _attention(model, images, pixels, *, layers, query, title, **_):
    return figures.attention(pixels[0], attention_maps(model, images[:1], layers), query, title=title)


def _rollout(model, images, pixels, *, query, title, **_):
    *_, (_, last, _) = placed_keys(model, images).values()
    shares = rollout(model, images, query if query in (None, "class") else cell(query, last))
    told = f"{title}: attention rollout, how much of each place reaches the output"
    return figures.overlay(pixels, shares, [""] * len(images), "share of the whole, %", told, share=True)


def _bias(model, images, pixels, *, layers, title, **_):
    return figures.relative_bias(relative_biases(model, layers), title)


def _pca(model, images, pixels, *, title, **_):
    names, chosen = _maps(model)
    maps = jit(model)(images, method="forward_features", pyramid=True, out_indices=chosen)
    return figures.colours(pixels, [feature_colours(one) for one in maps], names, title)


def _erf(model, images, pixels, *, title, **_):
    names, chosen = _maps(model)
    fields = [receptive_field(model, images, index=index) for index in chosen]
    return figures.receptive_field(fields, names, list(map(effective_side, fields)), title)


def _gradcam(model, images, pixels, *, label, title, **_):
    labels = None if label is None else [label] * len(images)
    maps, labels, probabilities = grad_cam(model, images, labels)
    names = [f"class {k}: {p:.1%}" for k, p in zip(labels, probabilities, strict=True)]
    return figures.overlay(pixels, maps, names, "evidence, % of the largest", f"{title}: Grad-CAM")


def _maps(model):
    """Names and indices of some of the model's maps."""
    chosen = figures.evenly(range(len(model.feature_info)), MAPS)
    return [model.feature_info[i].name for i in chosen], tuple(chosen)


# what draws it, and what a model needs for it
KINDS = {
    "attention": (_attention, "no layer has attention weights over places of the image"),
    "rollout": (_rollout, "that needs attention over places of the image in every block"),
    "bias": (_bias, "it has no bias for relative positions"),
    "pca": (_pca, "it has no maps"),
    "erf": (_erf, "it has no maps"),
    "gradcam": (_gradcam, "that needs a classifier over one last map"),
}
