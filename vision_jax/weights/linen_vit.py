"""The `.npz` ViTs of google-research: vision_transformer (the AugReg release) and big_vision, brought to one form.

The form is the older repository's: blocks one by one, positions inside the encoder and counting the class token.
"""

import math
import re

import ml_dtypes
import numpy as np

_PREFIXES = ("opt/target/", "params/img/", "params/", "")
_POSITIONS = "Transformer/posembed_input/pos_embedding"
_BLOCK = "Transformer/encoderblock/"
_RENAMES = (
    (r"^(pos_embedding|Transformer/pos_embedding)$", _POSITIONS),
    (r"(encoderblock_\d+/)MultiHeadDotProductAttention_0/", r"\1MultiHeadDotProductAttention_1/"),
    (r"(encoderblock_\d+/)LayerNorm_1/", r"\1LayerNorm_2/"),
    (r"(encoderblock_\d+/)MlpBlock_0/", r"\1MlpBlock_3/"),
)


def canonical(arrays):
    """The arrays of an `.npz` file under the names of the older form; files of other models pass as they are.

    Args:
      arrays: {name: array}. Parameters may lie below "opt/target/" or "params/" beside other things, and the blocks be
        stacked along a leading axis.

    Returns:
      {name: array}.
    """
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}embedding/kernel" in arrays), None)
    if prefix is None:
        return arrays
    out = {}
    for name, array in arrays.items():
        if not name.startswith(prefix):
            continue
        array = array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
        for new, block in _unstacked(name[len(prefix) :], array):
            for pattern, replacement in _RENAMES:
                new = re.sub(pattern, replacement, new)
            out[new] = block
    table = out.get(_POSITIONS)
    if table is not None and "cls" in out and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        # big_vision adds positions before the class token joins, which is a position of zero for it
        out[_POSITIONS] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    return out


def _unstacked(name, array):
    if not name.startswith(_BLOCK):
        return [(name, array)]
    return [(f"Transformer/encoderblock_{i}/{name[len(_BLOCK) :]}", block) for i, block in enumerate(array)]
