"""The mesh of devices, its axes "data" (prompts) and "model" (tensors), and how arrays lie."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"


DATA_SHARDED, PER_DEVICE, REPLICATED = (
    PartitionSpec(DATA),
    PartitionSpec((DATA, MODEL)),
    PartitionSpec(),
)


def make_mesh(model: int = 1, devices: Any = None) -> Mesh:
    """A mesh of devices, of which ``model`` together hold one copy of the parameters.

    Args:
      model: size of the axis "model"; the rest is "data".
      devices: default all of them, of all processes.

    Raises:
      ValueError: if ``model`` does not divide their number.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).reshape(-1)
    if isinstance(model, bool) or not isinstance(model, int) or model < 1 or devices.size % model:
        raise ValueError(
            f"model is {model!r}; it must be a divisor of the number of devices, {devices.size}."
        )
    return Mesh(devices.reshape(-1, model), (DATA, MODEL))


def check_mesh(mesh: Any) -> None:
    """Raises ValueError unless it is a mesh with the axes that this package uses."""
    if not isinstance(mesh, Mesh) or mesh.axis_names != (DATA, MODEL):
        got = mesh.axis_names if isinstance(mesh, Mesh) else mesh
        raise ValueError(f"mesh is {got!r}; it must be a Mesh with axes {DATA!r} and {MODEL!r}.")


def mesh_of(params: Any) -> Mesh | None:
    """The mesh on which parameters lie: one with these axes, or a device that is not the default.

    None for parameters on the default device, in host memory, or on a mesh of other axes.
    """
    devices: set[Any] = set()
    for leaf in jax.tree.leaves(params):
        placed = getattr(leaf, "sharding", None)
        if isinstance(placed, NamedSharding) and placed.mesh.axis_names == (DATA, MODEL):
            return placed.mesh  # type: ignore[return-value]
        devices |= set() if placed is None else placed.device_set
    if len(devices) != 1 or devices == default_place().device_set:
        return None
    return make_mesh(1, list(devices))


def default_place() -> jax.sharding.Sharding:
    """Where arrays lie of which nothing is said."""
    return jax.device_put(0).sharding


@contextlib.contextmanager
def no_ambient_mesh() -> Iterator[None]:
    """Whatever mesh the caller has set (``jax.set_mesh``), programs run where ``Layout`` says."""
    with jax.set_mesh(Mesh(np.empty((), object), ())):
        yield
