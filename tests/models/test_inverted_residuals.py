"""Tables of mobile blocks: how they scale, and what is refused."""

import pytest

from vision_jax.errors import InputError
from vision_jax.models.inverted_residuals import Blocks, scaled
from vision_jax.registry import create_model

ROW = Blocks("mbconv", 3, 3, 2, 6, 40)


def test_repeats_are_rounded_up_and_shared():
    def repeats(rows, depth, **how):
        return [[row.repeats for row in stage] for stage in scaled(rows, depth=depth, **how)]

    once, twice = ROW._replace(repeats=1), ROW._replace(repeats=2)
    assert repeats(((ROW,), (once,)), 1.1) == [[4], [2]]
    assert repeats(((once, once, twice),), 1.2) == [[1, 2, 2]]  # the last rows first
    assert repeats(((once,), (ROW,), (once,)), 2.0, fixed_ends=True) == [[1], [6], [1]]
    assert repeats(((once,), (ROW,)), (1.0, 1.5)) == [[1], [5]]


def test_channels_are_multiples_of_eight():
    assert [scaled(((ROW,),), width)[0][0].dim for width in (1.0, 1.1, 1.4, 0.5)] == [40, 48, 56, 24]
    assert scaled(((ROW,),), 1.14, limit=0)[0][0].dim == 48


def test_errors():
    for fields, message in (
        (dict(act="elu"), "act='elu': one of .*'silu'"),
        (dict(stages=((ROW._replace(act="tanh"),),)), "act='tanh': one of"),
        (dict(stages=((ROW._replace(kind="ghost"),),)), "kind='ghost': one of .*'mbconv'"),
        (dict(stages=((ROW._replace(num_experts=2, group_width=4),),)), "num_experts=2: only of plain"),
        (dict(stages=((),)), "at least one, each with blocks"),
        (dict(se_gate="tanh"), "se_gate='tanh': one of"),
    ):
        with pytest.raises(InputError, match=message):
            create_model("efficientnet_b0", abstract=True, **fields)
