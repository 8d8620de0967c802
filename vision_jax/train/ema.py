"""An exponential moving average of the parameters."""

import jax
import jax.numpy as jnp


def ema_update(ema, params, step, decay, warmup=False):
    """The average after one more step: decay * ema + (1 - decay) * params.

    Args:
      ema: the average so far: the parameters' tree, in float32 (or wider). It begins as a copy of the parameters.
      params: the parameters after the step.
      step: the updates of the average made before this one, from 0; may be traced.
      decay: as 0.9999.
      warmup: use min(decay, (1 + step) / (10 + step)) (TensorFlow's `num_updates`), so that a short run, or the
        beginning of a long one, does not average over the initial parameters.

    Returns:
      The new average, of the same tree and dtypes.
    """
    # The weight of the new parameters is formed without the subtraction 1 - decay, which in float32 would cost four
    # digits at a decay of 0.9999: 1 - (1 + t) / (10 + t) = 9 / (10 + t).
    weight = jnp.maximum(1 - decay, 9 / (10 + step)) if warmup else 1 - decay

    def update(average, param):
        wide = average.astype(jnp.promote_types(average.dtype, jnp.float32))
        return (wide + weight * (param - wide)).astype(average.dtype)

    return jax.tree.map(update, ema, params)
