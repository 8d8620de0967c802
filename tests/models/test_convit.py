"""Where ConViT's heads look before any training."""

import numpy as np
import pytest

import vision_jax as vj
from vision_jax.models.convit import relative_positions


def test_relative_positions_by_the_definition():
    given = relative_positions(2, 3)
    for query in range(6):
        for key in range(6):
            dx, dy = key % 3 - query % 3, key // 3 - query // 3
            assert given[query, key].tolist() == [dx, dy, dx * dx + dy * dy]


@pytest.mark.parametrize("heads", [9, 11])
def test_each_head_starts_at_one_offset(heads):
    """Nine heads are a 3x3 kernel, column by column as in the released code; two more have none."""
    model = vj.create_model(
        "convit_small", img_size=(48, 64), patch_size=8, depth=2, local_depth=1, num_heads=heads, embed_dim=4 * heads
    )
    attn = getattr(model.local_blocks, "0").attn
    scores = relative_positions(6, 8) @ np.asarray(attn.pos_proj.kernel[...])
    query = 2 * 8 + 3
    for head in range(9):
        row, column = divmod(int(scores[query, :, head].argmax()), 8)
        assert (column - 3, row - 2) == (head // 3 - 1, head % 3 - 1)
    values = np.asarray(attn.qkv.kernel[:, 2]).reshape(4 * heads, 4 * heads)
    np.testing.assert_array_equal(values, np.eye(4 * heads))
