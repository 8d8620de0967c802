import math

import numpy as np

from vision_jax.layers.position import log_spaced_offsets, relative_index


def test_relative_index_counts_query_minus_key():
    index = relative_index(2, 3)
    for query, key in np.ndindex(6, 6):
        rows, columns = query // 3 - key // 3, query % 3 - key % 3
        assert index[query, key] == (rows + 1) * 5 + (columns + 2)
    assert sorted(set(index.reshape(-1).tolist())) == list(range(15))


def test_log_spaced_offsets_equal_the_definition():
    offsets = log_spaced_offsets(3, 4, (6, 2))
    assert offsets.shape == (5, 7, 2)
    for i, j in np.ndindex(5, 7):
        for given, d, reference in zip(offsets[i, j], (i - 2, j - 3), (6, 2), strict=True):
            wanted = math.copysign(math.log(1 + 8 * abs(d) / (reference - 1), 8), d)
            assert abs(given - wanted) < 1e-12
    assert not log_spaced_offsets(1, 1, (1, 1)).any()
