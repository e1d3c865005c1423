"""The device mesh with its axes "data" (prompts) and "model" (tensors), and arrays' shardings."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_power_smc.core import checks
from jax_power_smc.core.types import Params

DATA, MODEL = "data", "model"

# By prompt, one copy per "model" group; by prompt, a part on every device; whole on every device.
DATA_SHARDED = PartitionSpec(DATA)
PER_DEVICE = PartitionSpec((DATA, MODEL))
REPLICATED = PartitionSpec()


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | np.ndarray | None = None) -> Mesh:
    """A mesh of devices in which groups of ``model`` devices each store the parameters once.

    Args:
      model: size of the axis "model"; the axis "data" takes the rest.
      devices: by default all devices of all processes.

    Raises:
      ValueError: if ``model`` does not divide the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).reshape(-1)
    size = checks.as_integer(model)
    if size is None or size < 1 or devices.size % size:
        raise ValueError(
            f"model is {model!r}; it must be a divisor of the number of devices, {devices.size}."
        )
    return Mesh(devices.reshape(-1, size), (DATA, MODEL))


def check_mesh(mesh: Any) -> None:
    """Raises ValueError unless it is a mesh with this package's axes."""
    if not isinstance(mesh, Mesh) or mesh.axis_names != (DATA, MODEL):
        got = mesh.axis_names if isinstance(mesh, Mesh) else mesh
        raise ValueError(f"mesh is {got!r}; it must be a Mesh with axes {DATA!r} and {MODEL!r}.")


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that holds the parameters: their own, or one of a single non-default device.

    None for parameters on the default device, in host memory, or on a mesh with other axes.
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
    """The sharding of arrays that are placed nowhere in particular."""
    return _default_place(jax.config.jax_default_device)  # type: ignore[attr-defined]


@functools.cache
def _default_place(device: Any) -> jax.sharding.Sharding:
    """For a value of JAX's setting; asking takes a copy to the device."""
    del device
    return jax.device_put(0).sharding


@contextlib.contextmanager
def no_ambient_mesh() -> Iterator[None]:
    """Ignores the mesh that a caller may have set (``jax.set_mesh``): ``Layout`` decides."""
    with jax.set_mesh(Mesh(np.empty((), object), ())):
        yield
