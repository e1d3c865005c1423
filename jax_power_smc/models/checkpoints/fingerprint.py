"""Digests of the files that a model is loaded from: equal digests mean the same model."""

import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from jax_power_smc.models.checkpoints.safetensors_index import weight_files

# The files beside the weights that a model is loaded from, if they exist.
METADATA_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Bytes hashed at a time. The digest depends on it.
_CHUNK = 2**24
_BYTES = 16
# The common name of all files that hold weights.
_WEIGHTS = "weights"
_COMMIT = re.compile("[0-9a-f]{40}")


def file_digests(directory: str | os.PathLike[str], *, weights: bool = True) -> dict[str, str]:
    """A digest, 32 hexadecimal digits, of each file that determines what a model computes, by name.

    These are config.json, generation_config.json, the tokenizer's files, the chat template, and
    under the one name "weights" the files that hold the weights: model.safetensors, or the index
    and the shards that it names. No other file counts. A file that is rewritten with the same
    meaning (different spaces in the JSON, different shards) has a different digest.

    Every byte is read. A gigabyte in the operating system's cache takes 0.7 seconds on two cores,
    and less on more cores, up to eight.

    Raises:
      OSError: if a file cannot be read.
      CheckpointError: if the index of the shards cannot be read.
    """
    root = pathlib.Path(directory)
    groups = {name: [name] for name in METADATA_FILES if (root / name).is_file()}
    if weights:
        groups[_WEIGHTS] = weight_files(root)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return {name: _digest_of(root, files, pool) for name, files in groups.items()}


def of_digests(digests: Mapping[str, str]) -> str:
    """One digest of all files, see ``file_digests``: 32 hexadecimal digits."""
    text = json.dumps(digests, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=_BYTES).hexdigest()


def hub_commit(directory: pathlib.Path) -> str | None:
    """The commit whose files a directory of the hub's cache holds; None for other directories."""
    in_cache = directory.parent.name == "snapshots" and directory.parents[1].name.startswith(
        "models--"
    )
    return directory.name if in_cache and _COMMIT.fullmatch(directory.name) else None


def _digest_of(root: pathlib.Path, names: Sequence[str], pool: concurrent.futures.Executor) -> str:
    """The digest of the names and contents of some files."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    for name in names:
        size = (root / name).stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        for part in pool.map(_digest, itertools.repeat(root / name), range(0, size, _CHUNK)):
            digest.update(part)
    return digest.hexdigest()


def _digest(path: pathlib.Path, offset: int) -> bytes:
    """The digest of one chunk of a file; hashing releases the GIL."""
    with open(path, "rb") as file:
        file.seek(offset)
        return hashlib.blake2b(file.read(_CHUNK)).digest()
