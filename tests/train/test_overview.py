import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax.train.overview import parameter_overview

PARAMS = {
    "blocks": {str(i): {"fc1": {"kernel": jnp.full((4, 8), float(i)), "bias": jnp.zeros(8)}} for i in range(3)},
    "head": {"kernel": jnp.ones((8, 1000), jnp.bfloat16)},
}
STACKED = {**PARAMS, "blocks": {"stacked": jax.tree.map(lambda *x: jnp.stack(x), *PARAMS["blocks"].values())}}


def cells(table):
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_each_parameter_has_a_row_and_the_total_is_right():
    table = parameter_overview(PARAMS)
    rows = cells(table)
    assert rows["blocks.1.fc1.kernel"] == ["[4,", "8]", "float32", "32"]
    assert rows["head.kernel"] == ["[8,", "1000]", "bfloat16", "8,000"]
    assert table.splitlines()[-1] == "total: 8,120 parameters, 16.1 KiB"
    assert len(table.splitlines()) == 2 + 7 + 1


@pytest.mark.parametrize("params", [PARAMS, STACKED], ids=["unrolled", "stacked"])
def test_blocks_share_rows_in_large_models(params):
    rows = cells(parameter_overview(params, stats=True, max_rows=2))
    assert rows["blocks.*.fc1.kernel"] == ["3", "×", "[4,", "8]", "float32", "96", "1", "0.816"]
    assert rows["head.kernel"][-2:] == ["1", "0"]
    assert rows["total:"][0] == "8,120"


def test_placement():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), STACKED)
    shardings["blocks"]["stacked"]["fc1"]["kernel"] = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    shardings["head"]["kernel"] = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    table = parameter_overview(jax.eval_shape(lambda: STACKED), shardings)
    assert cells(table)["blocks.*.fc1.kernel"][-2:] == ["(-,", "fsdp)"]
    assert cells(table)["head.kernel"][-2:] == ["(-,", "data+fsdp)"]
    assert cells(table)["blocks.*.fc1.bias"][-1] == "replicated"
    bytes_a_device = 96 // 4 * 4 + 24 * 4 + 8000 // 8 * 2
    assert table.endswith(f", {bytes_a_device / 1024:.1f} KiB a device")
    np.testing.assert_equal(bytes_a_device, 2192)
