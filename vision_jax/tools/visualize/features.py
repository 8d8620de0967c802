"""Features as colours: the three directions in which a map's features differ most, as red, green and blue."""

import numpy as np

from vision_jax.errors import InputError


def feature_colours(features, clip=1.0):
    """The first three principal components of the features of all places of all images, each scaled to 0..1.

    Places of one colour have like features. The colours themselves mean nothing, and are not those of another map.

    Args:
      features: [B, H, W, C], C at least 3.
      clip: percentage of places that may be cut off at either end of a colour's scale.

    Returns:
      (colours [B, H, W, 3] in 0..1, the components' shares of the variance [3]).

    Raises:
      InputError: another shape.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 4 or features.shape[-1] < 3:
        raise InputError(f"features of shape {features.shape}: [B, H, W, C] with C at least 3 is wanted")
    rows = features.reshape(-1, features.shape[-1])
    rows = rows - rows.mean(axis=0)
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    values, directions = (np.pad(a, [(0, max(0, 3 - len(a)))] + [(0, 0)] * (a.ndim - 1)) for a in (values, directions))
    # The sign of a direction is arbitrary: its largest element is made positive, so that a picture is reproducible.
    largest = abs(directions[:3]).argmax(axis=1)
    signs = np.sign(directions[np.arange(3), largest]) + (directions[np.arange(3), largest] == 0)
    scores = rows @ (directions[:3] * signs[:, None]).T
    low, high = np.percentile(scores, [clip, 100 - clip], axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, np.finfo(np.float64).tiny), 0, 1)
    share = values[:3] ** 2 / max((values**2).sum(), np.finfo(np.float64).tiny)
    return colours.reshape(*features.shape[:3], 3), share
