"""Rows of a file of problems: JSON, JSON lines (also .gz) or CSV, local or remote.

A row is what one record of the file holds, by name, and knows where it stands, so that what is
refused can be found.
"""

import csv
import dataclasses
import gzip
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

SUFFIXES = (".json", ".jsonl", ".csv", ".gz")


@dataclasses.dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
      place: such as "row 3 of problems.jsonl".
      values: what it holds.
    """

    place: str
    values: Mapping[str, Any]

    def has(self, *names: str) -> bool:
        """Whether one of the fields is there and neither null nor NaN."""
        return any(not _is_missing(self.values.get(name)) for name in names)

    def value(self, *names: str) -> Any:
        """The first of the fields that is there and neither null nor NaN.

        Raises:
          ValueError: if there is none.
        """
        for name in names:
            if self.has(name):
                return self.values[name]
        found = ", ".join(map(str, self.values)) or "nothing"
        raise ValueError(f"{self.place} lacks {' or '.join(names)}; it has {found}.")

    def text(self, *names: str) -> str:
        """Like ``value``, as text: numbers are written out.

        Raises:
          ValueError: if there is none, or it is neither text nor a number, or blank.
        """
        value = self.value(*names)
        name = next(filter(self.has, names))
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{self.place} has {name} {value!r}; it must be a text.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{self.place} has {name} {value!r}; it must be a finite number.")
        if not str(value).strip():
            raise ValueError(f"{self.place} has an empty {name}.")
        if any("\ud800" <= letter <= "\udfff" for letter in str(value)):
            raise ValueError(f"{self.place} has half a character (a lone surrogate) in {name}.")
        return str(value)

    def text_or_none(self, *names: str) -> str | None:
        """Like ``text``, or None if there is none or it is blank, as in a table's empty cell."""
        if not self.has(*names) or not str(self.value(*names)).strip():
            return None
        return self.text(*names)


def read_records(path: str, field: str = "config.data") -> list[Record]:
    """The rows of a file.

    Args:
      path: local or remote; a file that begins with "[" is one JSON list, one whose name ends in
        ".csv" (or ".csv.gz") has a line of names first, any other is JSON lines.
      field: what named the file, for errors.

    Raises:
      ValueError: if the file cannot be read, or a line of it is no record.
    """
    file = epath.Path(path).expanduser()
    name = os.path.basename(path)
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{field} is {path!r}; there is no such file.") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{field} is {path!r}; it cannot be read ({error}).") from error
    if name.removesuffix(".gz").endswith(".csv"):
        return _from_csv(text, name)
    return _from_list(text, name) if text.lstrip().startswith("[") else _from_lines(text, name)


def numbered(records: Iterable[Any], name: str) -> list[Record]:
    """Rows of records that are in memory.

    Raises:
      ValueError: for a record that is not an object.
    """
    return [_record(record, f"row {i} of {name}") for i, record in enumerate(records, 1)]


def _from_list(text: str, name: str) -> list[Record]:
    try:
        records: Sequence[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}).") from error
    return numbered(records, name)


def _from_lines(text: str, name: str) -> list[Record]:
    rows = []
    # Not splitlines: a text in JSON may hold other ends of lines as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {name} is not JSON ({error}).") from error
        rows.append(_record(record, f"line {number} of {name}"))
    return rows


def _from_csv(text: str, name: str) -> list[Record]:
    try:
        records = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{name} is not CSV ({error}).") from error
    rows = numbered(records, name)
    for row in rows:
        if None in row.values:
            raise ValueError(f"{row.place} has more cells than {name} has names.")
    return rows


def _is_missing(value: Any) -> bool:
    """Whether there is none; an export of pandas has NaN where there is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _record(record: Any, place: str) -> Record:
    if not isinstance(record, Mapping):
        raise ValueError(f"{place} holds a JSON {type(record).__name__}; it must be an object.")
    return Record(place, record)
