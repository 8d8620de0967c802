"""Effective receptive fields: which pixels move the middle of a map (Luo et al., 2016, arXiv:1701.04128)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.functional import apply, split


def receptive_field(model, images, *, index=-1, draws=4, seed=0):
    """How strongly each pixel moves the features at the middle of a map.

    The root of the mean square of their gradient, over images, draws and channels: the paper's gradient is of one
    number a place (section 4), here of a random combination of the channels, whose square has the whole Jacobian's as
    its mean, so that nothing cancels.

    Args:
      model: a model with parameters.
      images: [B, H, W, C], normalised.
      index: which of the model's maps (`feature_info`).
      draws: random combinations; more are smoother.
      seed: of them.

    Returns:
      [H, W], at least 0, the largest 1; all 0 where no pixel moves it.

    Raises:
      InputError: an index out of range.
    """
    static, variables = split(model)
    features = functools.partial(apply, static, method="forward_features", pyramid=True, out_indices=(index,))

    @jax.jit
    def squares(variables, images, key):
        def mixed(images):
            (maps,), _ = features(variables, images)
            middle = maps[:, maps.shape[1] // 2, maps.shape[2] // 2]
            return (middle * jax.random.normal(key, middle.shape, middle.dtype)).sum()

        return jnp.square(jax.grad(mixed)(images)).sum(axis=(0, 3))

    images = jnp.asarray(images)
    total = sum(squares(variables, images, jax.random.key(seed + n)) for n in range(draws))
    field = np.sqrt(np.asarray(total, np.float64))
    return field / (field.max() or 1)


def effective_side(field):
    """Side in pixels of a square as large as the field: of the pixels above 4.55 % of the largest (section 4.1)."""
    return float(np.sqrt((np.asarray(field) > 1 - 0.9545).sum()))
