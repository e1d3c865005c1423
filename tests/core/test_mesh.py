"""Meshes of "data" and "model": how they are made, and where parameters lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding

from jax_power_smc.core import mesh


@pytest.mark.parametrize("model", [1, 2, 8, np.int64(4)])
def test_model_groups_and_the_rest_is_data(model):
    made = mesh.make_mesh(model)
    assert dict(made.shape) == {"data": 8 // model, "model": model}
    assert made.devices.ravel().tolist() == jax.devices()


def test_devices_may_be_given():
    devices = jax.devices()[2:6]
    made = mesh.make_mesh(2, devices)
    assert dict(made.shape) == {"data": 2, "model": 2} and made.devices.ravel().tolist() == devices


@pytest.mark.parametrize("model", [0, 3, 16, -1, True, 2.0, "2", None])
def test_a_size_that_does_not_divide_the_devices_is_refused(model):
    with pytest.raises(ValueError, match=r"^model is .*; it must be a divisor .* devices, 8\.$"):
        mesh.make_mesh(model)


@pytest.mark.parametrize("value", [None, "data", jax.make_mesh((8,), ("data",))])
def test_other_meshes_are_refused(value):
    mesh.check_mesh(mesh.make_mesh(2))
    with pytest.raises(ValueError, match=r"^mesh is .*axes 'data' and 'model'\.$"):
        mesh.check_mesh(value)


def test_the_mesh_of_parameters():
    made = mesh.make_mesh(2)
    leaf = jnp.zeros((4,))
    assert mesh.mesh_of({"a": leaf, "b": np.zeros(3)}) is None
    placed = jax.device_put(leaf, NamedSharding(made, mesh.REPLICATED))
    assert mesh.mesh_of({"a": np.zeros(3), "b": placed}) == made
    other = jax.device_put(leaf, SingleDeviceSharding(jax.devices()[3]))
    assert mesh.mesh_of([other]).devices.ravel().tolist() == [jax.devices()[3]]
    named = jax.device_put(
        leaf, NamedSharding(jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec())
    )
    assert mesh.mesh_of([named]) is None


def test_an_ambient_mesh_is_hidden():
    with jax.set_mesh(mesh.make_mesh(2)), mesh.no_ambient_mesh():
        assert jax.sharding.get_abstract_mesh().empty
