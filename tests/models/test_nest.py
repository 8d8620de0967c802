"""NesT's positions, which lie block by block, at another image size."""

import numpy as np

from vision_jax.layers.resample import resample_map
from vision_jax.models.nest import Level, as_map


def test_positions_of_another_size():
    level = Level(None, 3, 2, (3, 5), None)
    blocks = np.random.default_rng(0).normal(size=(1, 4, 16, 3)).astype(np.float32)
    rows = [np.concatenate([blocks[0, 2 * i + j].reshape(4, 4, 3) for j in range(2)], axis=1) for i in range(2)]
    wanted = resample_map(np.concatenate(rows)[None], (6, 10))
    np.testing.assert_array_equal(as_map(level.resample("pos_embed", blocks), 2, (3, 5)), wanted)
