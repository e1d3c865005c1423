"""Records of a file of problems: JSON, JSON lines (both also .gz) or CSV, local or remote.

A record knows where it comes from, so that an error can say where the bad one is.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from jax_power_smc.core.files import parse_json

SUFFIXES = (".json", ".jsonl", ".csv", ".gz")
# Millions of bytes of a file. A compressed one can have a thousand times its size.
LARGEST = 200


@dataclasses.dataclass(frozen=True)
class Record:
    """One record's fields, and its location, such as "line 3 of problems.jsonl"."""

    location: str
    fields: Mapping[str, Any]

    def has(self, *names: str) -> bool:
        """Whether any of the fields is present and neither null nor NaN."""
        return any(not _is_missing(self.fields.get(name)) for name in names)

    def value(self, *names: str) -> Any:
        """The first of the fields that is present and neither null nor NaN.

        Raises:
          ValueError: if there is none.
        """
        for name in names:
            if self.has(name):
                return self.fields[name]
        found = ", ".join(map(str, self.fields)) or "nothing"
        raise ValueError(f"{self.location} lacks {' or '.join(names)}; it has {found}.")

    def text(self, *names: str) -> str:
        """Like ``value``, as text; numbers are converted.

        Raises:
          ValueError: if there is none, or it is blank, or neither text nor a number.
        """
        value = self.value(*names)
        name = next(filter(self.has, names))
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{self.location} has {name} {value!r}; it must be a text.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{self.location} has {name} {value!r}; it must be a finite number.")
        if not str(value).strip():
            raise ValueError(f"{self.location} has an empty {name}.")
        if any("\ud800" <= letter <= "\udfff" for letter in str(value)):
            raise ValueError(f"{self.location} has half a character (a lone surrogate) in {name}.")
        return str(value)

    def text_or_none(self, *names: str) -> str | None:
        """Like ``text``, or None if there is none or it is blank, like an empty CSV cell."""
        if not self.has(*names) or not str(self.value(*names)).strip():
            return None
        return self.text(*names)


def read_records(path: str, field: str = "config.data", megabytes: int = LARGEST) -> list[Record]:
    """The records of a file.

    Args:
      path: local or remote. A file that starts with "[" is one JSON list; one whose name ends in
        ".csv" or ".csv.gz" has the field names in its first line; any other is JSON lines.
      field: which config field named the file, for errors.
      megabytes: the largest file, in millions of bytes, unpacked if it is compressed.

    Raises:
      ValueError: if the file cannot be read, is too large, or part of it is not a record.
    """
    file = epath.Path(path).expanduser()
    name = os.path.basename(path)
    most = megabytes * 10**6
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(file.open("rb"))
            if name.endswith(".gz"):
                stream = stack.enter_context(gzip.open(stream))
            data = stream.read(most + 1)
        if len(data) > most:
            unpacked = " when it is unpacked" if name.endswith(".gz") else ""
            raise ValueError(
                f"{field} is {path!r}, which has more than {megabytes} million bytes{unpacked}; if "
                "that is meant, raise config.limits.data_megabytes."
            )
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{field} is {path!r}; there is no such file.") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{field} is {path!r}; it cannot be read ({error}).") from error
    if name.removesuffix(".gz").endswith(".csv"):
        return _from_csv(text, name)
    return _from_list(text, name) if text.lstrip().startswith("[") else _from_lines(text, name)


def numbered(entries: Iterable[Any], name: str) -> list[Record]:
    """Records of objects in memory, located by their number, from 1.

    Raises:
      ValueError: if an entry is not an object.
    """
    return [_record(entry, f"record {i} of {name}") for i, entry in enumerate(entries, 1)]


def _from_list(text: str, name: str) -> list[Record]:
    try:
        entries: Sequence[Any] = parse_json(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}).") from error
    return numbered(entries, name)


def _from_lines(text: str, name: str) -> list[Record]:
    records = []
    # Not splitlines: JSON text may contain other line separators unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, strict=False)  # pandas exports NaN for no value
        except ValueError as error:
            raise ValueError(f"line {number} of {name} is not JSON ({error}).") from error
        records.append(_record(entry, f"line {number} of {name}"))
    return records


def _from_csv(text: str, name: str) -> list[Record]:
    try:
        entries = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{name} is not CSV ({error}).") from error
    records = numbered(entries, name)
    for record in records:
        if None in record.fields:
            raise ValueError(f"{record.location} has more cells than {name} has field names.")
    return records


def _is_missing(value: Any) -> bool:
    """Whether a value stands for none; pandas exports NaN for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _record(entry: Any, location: str) -> Record:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{location} holds a JSON {type(entry).__name__}; it must be an object.")
    return Record(location, entry)
