"""From file to devices: the sharding of each parameter, and how its shards are filled."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from jax_power_smc.models.transformer.tensor_parallel import ParamPath, dotted

# Elements converted at a time, few enough to stay in the processor's cache.
BLOCK = 2**18
# The alignment in bytes that XLA needs in order to use host memory without a copy.
ALIGNMENT = 64


def resolve_shardings(
    shardings: Any, state: nnx.State
) -> dict[ParamPath, jax.sharding.Sharding | None]:
    """The sharding of every parameter.

    Args:
      shardings: None for the default device; or a function (path, shape) -> sharding, with paths
        such as ("layers", 0, "attention", "query"); or a pytree of shardings with the structure of
        the parameters, in which one sharding may stand for a whole branch.
      state: the parameters, or their shapes.

    Raises:
      ValueError: if shardings is none of these, or does not divide a parameter evenly.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in nnx.to_flat_state(state)}
    if shardings is None:
        return dict.fromkeys(shapes)
    if callable(shardings):
        found = {path: shardings(path, shape) for path, shape in shapes.items()}
    else:
        try:
            leaves = jax.tree.leaves(jax.tree.broadcast(shardings, state, is_leaf=_is_sharding))
        except ValueError as error:
            raise ValueError(
                f"shardings is a {type(shardings).__name__} without the structure of the "
                "parameters; allowed are None, a function (path, shape) -> sharding, and a pytree "
                "of shardings with that structure."
            ) from error
        found = dict(zip(shapes, leaves, strict=True))
    for path, sharding in found.items():
        _check_fits(sharding, path, shapes[path])
    return found


def place(
    view: np.ndarray, dtype: np.dtype, sharding: jax.sharding.Sharding | None
) -> tuple[jax.Array, bool]:
    """Fills each shard of a parameter with its slice of a view of a memory map.

    Only the slices that this process needs are read; without a sharding, the parameter goes to the
    default device. Returns the parameter, which shares no memory with the view, and whether every
    value that this process read is finite.
    """
    slices: dict[Any, tuple[np.ndarray, bool]] = {}

    def read(index: Any) -> np.ndarray:
        # Devices that hold the same slice share it.
        key = tuple((part.start, part.stop) for part in index)
        if key not in slices:
            slices[key] = copy_slice(view[index], dtype)
        return slices[key][0]

    if sharding is None:
        # Not committed to its device, so that it can be combined with arrays on others.
        array = jax.device_put(read((slice(None),) * view.ndim))
    else:
        array = jax.make_array_from_callback(view.shape, sharding, read, dtype=dtype)
    # A transfer still in progress would keep the slices in host memory.
    array.block_until_ready()
    return array, all(finite for _, finite in slices.values())


def copy_slice(view: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """A converted copy of a view, and whether all of its values are finite."""
    out = _aligned(view.shape, dtype)
    # The axes in the order of the file, which is then read from beginning to end.
    order = sorted(range(view.ndim), key=lambda axis: -view.strides[axis])
    # A value too large for the new dtype becomes infinite; the caller reports it by tensor.
    with np.errstate(over="ignore", invalid="ignore"):
        return out, _copy(view.transpose(order), out.transpose(order))


def _copy(source: np.ndarray, target: np.ndarray) -> bool:
    """Fills the target block by block; False if a value is infinite or not a number."""
    if source.size > BLOCK and len(source) > 1:
        half = len(source) // 2
        first = _copy(source[:half], target[:half])
        return _copy(source[half:], target[half:]) and first
    if source.size > BLOCK and source.ndim > 1:
        return _copy(source[0], target[0])
    # Converted, then transposed: each is fast alone, and the two at once are slow.
    block = source.astype(target.dtype, copy=False)
    target[...] = block
    return _is_finite(block)


def _is_finite(array: np.ndarray) -> bool:
    """np.isfinite(array).all() from the bits: fast for bfloat16 too, which is foreign to NumPy."""
    bits = array.view(f"u{array.dtype.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits.dtype)
    magnitude = np.iinfo(bits.dtype).max >> 1  # all but the sign
    return not array.size or bool((bits & bits.dtype.type(magnitude)).max() < infinity)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that a CPU device can use without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _is_sharding(value: Any) -> bool:
    return isinstance(value, jax.sharding.Sharding)


def _check_fits(sharding: Any, path: ParamPath, shape: tuple[int, ...]) -> None:
    if not _is_sharding(sharding):
        raise ValueError(
            f"shardings gives {sharding!r} for {dotted(path)}; it must be a jax.sharding.Sharding."
        )
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(
            f"shardings gives {sharding} for {dotted(path)}, whose shape {shape} it does not "
            "divide evenly."
        ) from error
