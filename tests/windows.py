"""Shifted windows as Swin's paper draws them, one query at a time, in numpy: what the layers must equal."""

import numpy as np


def attend(x, project, score, window, shift):
    """Attention inside shifted windows, [H, W, C] -> [H, W, heads * d].

    Args:
      x: a map.
      project: token [C] -> (q, k, v), each [heads, d].
      score: (q, k [heads, d], rows, columns from key to query) -> [heads].
      window, shift: (height, width), (rows, columns).
    """
    height, width = x.shape[:2]
    # the map shifted, then zeros below and to the right
    shifted = {}
    for i in range(-(-height // window[0]) * window[0]):
        for j in range(-(-width // window[1]) * window[1]):
            inside = i < height and j < width
            shifted[i, j] = x[(i + shift[0]) % height, (j + shift[1]) % width] if inside else np.zeros(x.shape[2])
    tall, wide = (max(place[axis] for place in shifted) + 1 for axis in (0, 1))
    projected = {place: project(token) for place, token in shifted.items()}
    place_of = {
        place: (place[0] // window[0], place[1] // window[1], place[0] >= tall - shift[0], place[1] >= wide - shift[1])
        for place in shifted
    }
    out = np.zeros((height, width, projected[0, 0][2].size))
    for (i, j), (q, _, _) in projected.items():
        if i >= height or j >= width:
            continue
        keys = [place for place in shifted if place_of[place] == place_of[i, j]]
        scores = np.stack([score(q, projected[key][1], i - key[0], j - key[1]) for key in keys])
        weights = np.exp(scores - scores.max(0))
        weights /= weights.sum(0)
        values = np.stack([projected[key][2] for key in keys])
        out[(i + shift[0]) % height, (j + shift[1]) % width] = (weights[..., None] * values).sum(0).reshape(-1)
    return out
