"""Attention rollout: how much of each place of the image reaches a token through all layers' attention.

Abnar & Zuidema, 2020 (arXiv:2005.00928, section 3): a layer passes on half of a token as it is and half of what it
attends to, A' = (A + I) / 2 with A the mean over the heads; the rollout is the product of all layers' A'.
"""

import numpy as np
from flax import nnx

from vision_jax.errors import InputError
from vision_jax.layers.channel_attention import ChannelAttention
from vision_jax.tools.visualize.attention import attention_maps


def rollout(model, images, query=None):
    """The attention rollout of each image.

    Where a stage ends, a token is taken for an equal mixture of the tokens that its place had before; of that the
    paper, whose models keep their tokens, says nothing.

    Args:
      model: a model all of whose blocks have attention over places: ViT, Swin, Swin V2, NAT and their kin.
      images: [B, H, W, C], normalised.
      query: whose: "class", (row, column) on the last map, or "mean" of the last map's. By default what the
        classifier reads: "class" where there is a class token, else "mean".

    Returns:
      [B, rows, columns], the first map's. What the class token holds of itself is left out; without one a rollout sums
      to one where windows tile the map.

    Raises:
      InputError: a model that cannot give it, a query that is not there.
    """
    layers = attention_maps(model, images)
    if why := refusal(model, layers):
        raise InputError(why)
    if query is None:
        read = getattr(model.config, "global_pool", "token")
        query = "class" if layers[-1].prefix and read == "token" else "mean"
    return np.stack([_rollout(layers, query, image) for image in range(len(images))])


def refusal(model, layers):
    """Why a model with attention in these layers has no rollout, or None."""
    config = model.config
    depth = getattr(config, "depth", None) or sum(getattr(config, "depths", ()))
    other = any(isinstance(module, ChannelAttention) for _, module in nnx.iter_modules(model))
    if layers and len(layers) == depth and not other:
        return None
    return f"rollout needs attention over places of the image in every block: {model.name} has it in {len(layers)}"


def _rollout(layers, query, image):
    above = layers[-1]
    share = np.zeros(above.weights.shape[2])
    if query == "mean":
        share[above.prefix :] = 1 / (len(share) - above.prefix)
    else:
        share[above.token(query)] = 1
    for layer in reversed(layers):
        if (layer.grid, layer.prefix) != (above.grid, above.prefix):
            share = _spread(share, above, layer)
        share = (share + share @ layer.mean_matrix(image)) / 2
        above = layer
    return share[above.prefix :].reshape(above.grid)


def _spread(share, above, below):
    """Shares of a stage's tokens -> of the tokens of the stage before, those of a place getting equal parts."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(below.grid, above.grid, strict=True))
    cells = (rows[:, None] * above.grid[1] + columns).reshape(-1)
    spread = share[above.prefix :][cells] / np.bincount(cells)[cells]
    before = np.zeros(below.prefix)
    kept = min(above.prefix, below.prefix)
    before[:kept] = share[:kept]
    return np.concatenate([before, spread])
