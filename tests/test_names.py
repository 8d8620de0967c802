import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from vision_jax import names

TREE = {
    "stem": jnp.zeros(2),
    "stages": {0: {"stacked": {"fc": {"kernel": jnp.arange(6.0).reshape(3, 2)}}}, 1: {"0": jnp.zeros(1)}},
}


def test_dotted():
    assert names.dotted((GetAttrKey("mu"), SequenceKey(0), DictKey("blocks"), DictKey(3))) == "mu.0.blocks.3"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("blocks", "stacked", "norm1", "scale"), ("blocks.0.norm1.scale", "blocks.1.norm1.scale")),
        (("restacked", "stacked", "scale"), ("restacked.0.scale", "restacked.1.scale")),
        (("stacked", "scale"), ("0.scale", "1.scale")),
        (("blocks", "stacked"), ("blocks.0", "blocks.1")),
        (("blocks", "stacked", "1of3", "scale"), ("blocks.1.scale", "blocks.4.scale")),
        (("stacked", "0of2"), ("0", "2")),
        (("blocks", "restacked", "scale"), ("blocks.restacked.scale",)),
        (("stacked_blocks", "scale"), ("stacked_blocks.scale",)),
    ],
)
def test_names(path, expected):
    path, leaf = tuple(map(DictKey, path)), np.zeros((2, 5))
    assert names.names(path, leaf) == expected
    assert names.is_stacked(path) == (len(expected) == 2)


def test_map_named():
    told = names.map_named(lambda leaf_names, leaf, other: (leaf_names, leaf.shape, other is leaf), TREE, TREE)
    assert told["stem"] == (("stem",), (2,), True)
    kernel = tuple(f"stages.0.{i}.fc.kernel" for i in range(3))
    assert told["stages"][0]["stacked"]["fc"]["kernel"] == (kernel, (3, 2), True)


def test_any_block():
    assert names.any_block(("blocks", "stacked", "1of2", "attn")) == "blocks.*.attn"
    assert names.any_block(("stages", 0, "stacked", "fc")) == "stages.0.*.fc"
    assert names.any_block(("blocks", 1, "attn")) == "blocks.1.attn"
