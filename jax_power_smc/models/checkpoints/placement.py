"""From a file to the devices: which sharding a parameter has, and how its shards are filled."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx

Path = tuple[Any, ...]  # of names and numbers

# Elements that are converted at a time: they stay in the processor's cache.
BLOCK = 2**18
# What XLA asks of memory that it takes over without a copy.
ALIGNMENT = 64


def dotted(path: Path) -> str:
    """The path as a name."""
    return ".".join(map(str, path))


def resolve_shardings(shardings: Any, state: nnx.State) -> dict[Path, jax.sharding.Sharding | None]:
    """The sharding of every parameter.

    Args:
      shardings: None for the default device; or a function (path, shape) -> sharding, with paths
        such as ("layers", 0, "attention", "query"); or a pytree of shardings with the structure of
        the parameters or with a leaf in place of a branch.
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
    """Fills the shards of a parameter with the slices of it that they hold.

    Args:
      view: the whole parameter, as a view of a memory map: only the slices that are needed are
        read.
      dtype: of the result.
      sharding: None for the default device.

    Returns:
      The parameter, which shares no memory with the view, and whether every value that this
      process read is finite.
    """
    slices: dict[Any, tuple[np.ndarray, bool]] = {}

    def read(index: Any) -> np.ndarray:
        # Devices that hold the same slice share it.
        key = tuple((part.start, part.stop) for part in index)
        if key not in slices:
            slices[key] = copy_slice(view[index], dtype)
        return slices[key][0]

    if sharding is None:
        # Not committed to its device: it may meet arrays that are elsewhere.
        array = jax.device_put(read((slice(None),) * view.ndim))
    else:
        array = jax.make_array_from_callback(view.shape, sharding, read, dtype=dtype)
    # A transfer that goes on keeps the slices in the host's memory.
    array.block_until_ready()
    return array, all(finite for _, finite in slices.values())


def copy_slice(view: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """A view's values in memory of their own, converted, and whether all of them are finite."""
    out = _aligned(view.shape, dtype)
    # The axes as they lie in the file, which is then read from beginning to end.
    order = sorted(range(view.ndim), key=lambda axis: -view.strides[axis])
    # A value too large for the new dtype becomes infinite, which is reported for all tensors.
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
    # Converted before it is transposed: both are quick alone and slow together.
    block = source.astype(target.dtype, copy=False)
    target[...] = block
    return _is_finite(block)


def _is_finite(array: np.ndarray) -> bool:
    """Like np.isfinite(array).all(), by the bits: quick for bfloat16 too, unknown to numpy."""
    bits = array.view(f"u{array.dtype.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits.dtype)
    magnitude = np.iinfo(bits.dtype).max >> 1  # all but the sign
    return not array.size or bool((bits & bits.dtype.type(magnitude)).max() < infinity)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory which a CPU device takes over as it is."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _is_sharding(value: Any) -> bool:
    return isinstance(value, jax.sharding.Sharding)


def _check_fits(sharding: Any, path: Path, shape: tuple[int, ...]) -> None:
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
