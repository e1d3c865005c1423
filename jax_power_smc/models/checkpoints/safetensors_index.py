"""Which tensors the safetensors files of a directory hold, from their headers alone."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import dtypes
from safetensors import SafetensorError, safe_open

from jax_power_smc.core.files import parse_json
from jax_power_smc.models.checkpoints.model_files import own_file, read_object
from jax_power_smc.models.transformer.config import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The dtypes that may be converted to the model's, by their safetensors names. The integers of a
# quantised checkpoint would convert as well, into nonsense.
FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": dtypes.bfloat16,
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Of a shard. In the patterns by which the hub's library selects files, others have a meaning.
_NAME = re.compile(r"[^*?\[\]]+\.safetensors")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file; its values are not read.

    Attributes:
      name: its name in the file.
      file: a safetensors file.
      dtype: its safetensors name, such as "BF16".
      shape: its shape in the file.
      offset: of its first byte from the beginning of the file.
    """

    name: str
    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """In bytes; only for a dtype in ``FLOATS``."""
        return math.prod(self.shape) * np.dtype(FLOATS[self.dtype]).itemsize

    def map(self) -> np.ndarray:
        """The tensor as a memory map; only for a dtype in ``FLOATS``."""
        mapped = np.memmap(self.file, FLOATS[self.dtype], "r", self.offset, self.shape)
        return mapped.view(np.ndarray)


def read_headers(directory: pathlib.Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of model.safetensors, or else of all shards named by the index.

    Returns:
      Every tensor of the files, and for each tensor named in the index the file that the index
      gives for it; an empty dict if there is no index.

    Raises:
      CheckpointError: naming the missing files, or the file that cannot be read or lies elsewhere.
    """
    if (directory / WEIGHTS).is_file():
        return _read_header(own_file(directory, WEIGHTS)), {}
    file_of = _read_index(directory)
    if not file_of:
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
        hint = f"; {', '.join(pickles)} is a pickle, which is never loaded" if pickles else ""
        raise CheckpointError(f"{directory} has neither {WEIGHTS} nor {INDEX}{hint}.")
    files = {name: directory / name for name in sorted(set(file_of.values()))}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise CheckpointError(f"{directory / INDEX} names {listing(missing)}, which is not there.")
    return [tensor for file in files.values() for tensor in _read_header(file)], file_of


def weight_files(directory: pathlib.Path) -> list[str]:
    """The names of the files that ``read_headers`` reads; empty if there are none.

    Raises:
      CheckpointError: for an index that cannot be read, or a file that lies elsewhere.
    """
    if (directory / WEIGHTS).is_file():
        own_file(directory, WEIGHTS)
        return [WEIGHTS]
    file_of = _read_index(directory)
    return [INDEX, *sorted(set(file_of.values()))] if file_of else []


def _read_index(directory: pathlib.Path) -> dict[str, str]:
    """Tensor name -> file name; empty if there is no index."""
    path = directory / INDEX
    if not path.is_file():
        return {}
    file_of = read_object(path).get("weight_map")
    if not isinstance(file_of, dict):
        raise CheckpointError(f"{path} is not a safetensors index (it has no weight_map).")
    names = dict.fromkeys(map(str, file_of.values()))
    if wrong := [x for x in names if not (_NAME.fullmatch(x) and x.isprintable())]:
        raise CheckpointError(
            f"{path} is not a safetensors index (its weight_map has {wrong[0][:200]!r}; it must "
            "have names of safetensors files)."
        )
    for name in names:
        own_file(directory, name, INDEX)
    return dict(file_of)


def listing(names: Sequence[str], most: int = 20) -> str:
    """The names for an error message, of which at most so many are shown."""
    shown = ", ".join(name[:200] for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _read_header(file: pathlib.Path) -> list[StoredTensor]:
    try:
        # Opened only so that the library checks that offsets, shapes and file length agree.
        with safe_open(file, framework="numpy"), open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file ({error}).") from error
    header.pop("__metadata__", None)
    return [
        StoredTensor(
            name, file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    ]
