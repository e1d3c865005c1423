"""Files of results: an existing file is never overwritten, and JSON is strict JSON."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath


def json_line(value: Any) -> str:
    """The value as a line of strict JSON, with null for numbers that are not finite."""
    return json.dumps(_without_infinities(value), allow_nan=False) + "\n"


def is_remote(path: epath.Path | pathlib.Path) -> bool:
    """Whether files there, such as those of gs://, can only be written whole."""
    return "://" in os.fspath(path)


def write_json(path: epath.Path | pathlib.Path, value: Any) -> None:
    """Writes strict JSON, indented, in one atomic step.

    Raises:
      ValueError: for a number that is not finite.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes_whole(path, text.encode())


def write_bytes_whole(path: epath.Path | pathlib.Path, content: bytes) -> None:
    """Writes a file in one atomic step, and waits until it is on the disk."""
    if is_remote(path):  # an object appears when it has been written
        path.write_bytes(content)
        return
    partial = f"{os.fspath(path)}.tmp"
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def sync_directory(directory: epath.Path | pathlib.Path) -> None:
    """Waits until new names in a local directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_older(path: pathlib.Path) -> None:
    """Renames an existing file, say records.jsonl, to the first free of records.1.jsonl, ..."""
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(older)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_infinities(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(part) for part in value]
    return value
