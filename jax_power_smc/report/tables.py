"""Tables: built once, printed in the terminal by ``rich`` or put on a page by the template."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from jax_power_smc.core.sanitize import as_is, visible

# Columns where the output is not a terminal.
FILE_WIDTH = 110
# Where the interval of a cell is printed: in a column of its own, after the value, or not at all.
Interval: TypeAlias = Literal["column", "inline", "none"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value, formatted, with its 95% interval if it has one."""

    text: str
    interval: str = ""
    bold: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """What the cells of a column have in common.

    Attributes:
      heading: above it; may have line breaks.
      is_text: left-aligned text rather than right-aligned numbers.
      hint: shown on the page when the mouse is over the heading.
      interval: how a terminal shows the intervals; a page has them below the values.
      max_width: characters beyond which a terminal folds the text.
    """

    heading: str
    is_text: bool = False
    hint: str = ""
    interval: Interval = "none"
    max_width: int | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and the rows below them; the first column names the rows."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""


def text_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1
) -> Table:
    """A table of values that need no more than ``str``, the first ``text_columns`` as text."""
    columns = [Column(name, is_text=i < text_columns) for i, name in enumerate(headings)]
    return Table(columns, [[Cell(str(value)) for value in row] for row in rows], title)


def pivot(
    title: str,
    names: Sequence[str],
    entries: Iterable[tuple[Sequence[object], str, str]],
    headings: Mapping[str, str] | None = None,
) -> Table:
    """A table from single values; what is missing stays empty.

    ``names`` are the headings of the fields that identify a row. Each entry has those fields, the
    name of a column, and the formatted value. ``headings`` are those of the columns by name, in
    order; by default the names as they come.
    """
    entries = list(entries)
    if headings is None:
        headings = {column: column for _, column, _ in entries}
    seen = {column for _, column, _ in entries}
    columns = [column for column in headings if column in seen]
    rows: dict[tuple[object, ...], dict[str, str]] = {}
    for key, column, text in entries:
        rows.setdefault(tuple(key), {})[column] = text
    return text_table(
        title,
        [*names, *(headings[column] for column in columns)],
        ([*key, *(row.get(column, "") for column in columns)] for key, row in rows.items()),
        len(names),
    )


def console() -> Console:
    """Prints to stdout, as wide as the terminal; what is printed must be ``visible``."""
    width = None if sys.stdout.isatty() else FILE_WIDTH
    return Console(file=as_is(sys.stdout), width=width, highlight=False)


def print_tables(tables: Iterable[Table]) -> None:
    """Prints tables that have rows, with their titles."""
    out = console()
    for table in tables:
        if table.rows:
            if table.title:
                out.print(_text(table.title), soft_wrap=True)
            out.print(to_rich(table))


def fits(out: Console, table: Table) -> bool:
    """Whether a console is wide enough for a table without folding more than it must."""
    wide = out.options.update(width=10_000)
    return out.measure(to_rich(table), options=wide).maximum <= out.width


def to_rich(table: Table) -> rich.table.Table:
    """For the terminal. Nothing in a cell or heading is read as markup."""
    made = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns: list[list[Text]] = []
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        style: dict[str, Any] = {"vertical": "bottom", "overflow": "fold"}
        if column.max_width:
            style["max_width"] = column.max_width
        elif not column.is_text:
            style["no_wrap"] = True
        made.add_column(
            _text(column.heading), justify="left" if column.is_text else "right", **style
        )
        width = max((len(cell.interval) for cell in cells), default=0)
        inline = column.interval == "inline"
        columns.append([_printed(cell, width if inline else 0) for cell in cells])
        if column.interval == "column":
            made.add_column(Text("95%"), no_wrap=True, vertical="bottom")
            columns.append([_text(cell.interval) for cell in cells])
    for row in zip(*columns, strict=True):
        made.add_row(*row)
    return made


def _printed(cell: Cell, interval_width: int) -> Text:
    """A value with its interval, which is as wide as the widest of its column."""
    text = (
        f"{cell.text} {cell.interval:>{interval_width}}"
        if cell.interval and interval_width
        else cell.text
    )
    return _text(text, "bold" if cell.bold else "")


def _text(text: str, style: str = "") -> Text:
    return Text(visible(text), style=style)
