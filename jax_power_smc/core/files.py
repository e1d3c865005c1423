"""Files of results: an existing file is never overwritten, and JSON is strict JSON."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any


def json_line(value: Any) -> str:
    """The value as a line of strict JSON, with null for numbers that are not finite."""
    return json.dumps(_without_infinities(value), allow_nan=False) + "\n"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes strict JSON, indented, in one atomic step.

    Raises:
      ValueError: for a number that is not finite.
    """
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


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
