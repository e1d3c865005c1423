"""What the tables of figures are made with: records, and grids of their values."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parent
RECORDS = DOCS / "records"

Record = dict[str, Any]


def read(name: str) -> list[Record]:
    """The records of docs/records/NAME.jsonl."""
    lines = (RECORDS / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def where(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The records that have these fields; a field that is None here must be absent or null."""
    return [r for r in records if all(r.get(name) == value for name, value in fields.items())]


def only(records: Iterable[Record], **fields: Any) -> Record:
    """The one record that has these fields.

    Raises:
      ValueError: if there is none, or more than one.
    """
    found = where(records, **fields)
    if len(found) != 1:
        raise ValueError(f"{len(found)} records have {fields}; exactly one is needed.")
    return found[0]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def grid(
    records: Sequence[Record],
    names: Sequence[str],
    rows: Mapping[Any, Record],
    columns: Mapping[str, tuple[str, Record]],
    *,
    gaps: bool = False,
) -> str:
    """A table of the values of single records.

    Args:
      records: to choose from.
      names: headings of the titles of a row.
      rows: titles of each row -> the fields of its records.
      columns: heading of each column -> the format of its values, and the fields of its records.
      gaps: whether a cell without a record is left empty; otherwise it is an error.
    """

    def cell(show: str, **fields: Any) -> str:
        if gaps and not where(records, **fields):
            return ""
        return show.format(only(records, **fields)["value"]).replace("%", " %")

    cells = (
        [*titles, *(cell(show, **own, **fields) for show, fields in columns.values())]
        for titles, own in rows.items()
    )
    return markdown((*names, *columns), cells)


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage without its sign."""
    return f"{100 * share:.{digits}f}"


def titled(titles: Mapping[str, Sequence[Any]], *names: str) -> dict[tuple[str, ...], Record]:
    """Rows for ``grid`` with one title each, from the values of the named fields."""
    return {(title,): dict(zip(names, values, strict=True)) for title, values in titles.items()}
