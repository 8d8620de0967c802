import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vision_jax import mesh as meshes
from vision_jax.errors import InputError
from vision_jax.mesh import constrain, constrain_batch, fit, make_mesh
from vision_jax.parallel import topology


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"devices": 3}, (3, 1, 1)),
    ],
)
def test_make_mesh(sizes, shape):
    if "devices" in sizes:
        sizes = {"devices": jax.devices()[: sizes["devices"]]}
    mesh = make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_an_axis_may_take_part_of_a_torus_dimension():
    mesh = make_mesh(data=2, fsdp=-1, devices=topology.devices("v5p:4x4x4"))
    assert tuple(mesh.shape.values()) == (2, 32, 1)
    assert {device.coords[2] for device in mesh.devices[0].flat} == {0, 1}  # its half of the slice lies together


def test_across_slices_goes_the_data_axis_alone():
    mesh = make_mesh(data=4, fsdp=-1, devices=topology.devices("2*v5e:4x4"))
    assert tuple(mesh.shape.values()) == (4, 8, 1)
    of_rows = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert of_rows == [{0}, {0}, {1}, {1}]
    with pytest.raises(InputError, match="over 2 slices: data must be a multiple of their number"):
        make_mesh(data=1, fsdp=32, devices=topology.devices("2*v5e:4x4"))
    with pytest.raises(InputError, match="the number of slices stands before the star"):
        topology.devices("two*v5e:4x4")


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"data": -1, "fsdp": -1},
        {"fsdp": 3},
        {"data": 16},
        {"data": 0},
        {"fsdp": 0},
        {"data": 2, "fsdp": 2},
    ],
)
def test_make_mesh_errors(sizes):
    with pytest.raises(InputError, match=r"does not fit 8 devices: the sizes must multiply to it, at most one"):
        make_mesh(**sizes)


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (("data", "fsdp", "tensor"), (4, 4, 4), P("data", "fsdp", "tensor")),
        ((("data", "fsdp"),), (4, 3), P(("data", "fsdp"), None)),
        ((("data", "fsdp"),), (2, 3), P("data", None)),  # four do not divide two
        (("data",), (3,), P(None)),
        (("nowhere", "tensor"), (8, 8), P(None, "tensor")),
        ((), (2, 2), P(None, None)),
    ],
)
def test_fit(spec, shape, expected):
    assert fit(spec, shape, make_mesh(data=2, fsdp=2, tensor=2)) == expected


def test_fit_refuses_a_spec_longer_than_the_shape():
    with pytest.raises(ValueError, match="zip"):
        fit(("data", "fsdp"), (2,), make_mesh())


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((8, 2))
    assert constrain_batch(x) is x


def test_constrain_under_a_mesh():
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        x = jax.jit(lambda: constrain_batch(jnp.ones((8, 6))))()
        assert {shard.data.shape for shard in x.addressable_shards} == {(2, 6)}
        x = jax.jit(lambda: constrain(jnp.ones((3, 6)), "data", "tensor"))()
        assert {shard.data.shape for shard in x.addressable_shards} == {(3, 3)}


def test_constrain_drops_axes_that_are_manual():
    mesh = make_mesh(data=2, fsdp=4)

    def inside(x):
        assert fit(("data", "fsdp"), x.shape, jax.sharding.get_abstract_mesh()) == P(None, "fsdp")
        return constrain_batch(2 * x)

    with jax.set_mesh(mesh):
        some = jax.jit(jax.shard_map(inside, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}))
        np.testing.assert_array_equal(some(jnp.ones((8, 8))), 2.0)
        every = jax.jit(jax.shard_map(constrain_batch, in_specs=P("data"), out_specs=P("data")))
        np.testing.assert_array_equal(every(jnp.ones((8, 8))), 1.0)


def test_placing_holds_inside_only():
    assert meshes.placement() is None
    with meshes.placing(len):
        assert meshes.placement() is len
    assert meshes.placement() is None
