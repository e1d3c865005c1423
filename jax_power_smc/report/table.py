"""The table of an evaluation in the terminal: a line per run, then paired comparisons."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_power_smc.report import formatting
from jax_power_smc.report.footnotes import notes, went_wrong
from jax_power_smc.report.sanitize import on_one_line
from jax_power_smc.report.summary_rows import Comparisons, Estimate, RunRow, comparisons, run_rows

# Columns where nobody says how wide the terminal is.
_WIDTH = 110
# In a narrow terminal the interval of pass@N is left out, and then tokens and seconds too.
_DROPPED = 2
# Longer labels go on in the next line; the second number is for where there is room.
_LABEL, _WIDE_LABEL = 28, 44
# Of a difference with its interval: +100.0 [-100.0, +100.0], and of the interval alone.
_PAIR, _INTERVAL = 23, 14


def show(summary: dict[str, Any]) -> None:
    """Prints what summary.json holds; see ``evaluation.summary.summarize``."""
    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False
    )
    rows = run_rows(summary)
    if not rows:
        print("No run has finished a problem with all its seeds yet.")
        return
    first = 0 if any(row.pass_at_n is not None for row in rows) else 1
    layouts = [_runs(rows, summary, dropped) for dropped in range(first, _DROPPED + 1)]
    console.print(next((x for x in layouts if _fits(console, x)), layouts[-1]))
    for table in _differences(comparisons(summary, only_telling=True), console):
        console.print(table)
    lines = notes(rows, summary)
    for text, counts in went_wrong(rows):
        each = (f"{on_one_line(label)} {number:,}" for label, number in counts)
        lines.append(f"{text}: {', '.join(each)}.")
    for line in lines:
        # No breaks of rich's own: a pipe has no width, and a terminal breaks by itself.
        console.print(Text(line), soft_wrap=True)


def _runs(rows: Sequence[RunRow], summary: dict[str, Any], dropped: int) -> Table:
    """The table, with ``dropped`` things left out for want of room."""
    show_problems = any(row.problems != summary["problems"] for row in rows)
    table = _table("method")
    for head, interval, shown in (
        ("N", False, True),
        ("problems", False, show_problems),
        ("draw", True, True),
        ("vote", False, True),
        ("best by\nlog p", False, True),
        ("pass@N", dropped < 1, True),
        ("tokens", False, dropped < 2),
        ("s/problem", False, dropped < 2),
        ("multiple", False, True),
    ):
        if shown:
            table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
        if interval:  # in a column of its own, so that figures are in line
            table.add_column("95%", justify="left", no_wrap=True, vertical="bottom")
    for row in rows:
        cells = [str(row.num_particles), *([f"{row.problems:,}"] if show_problems else [])]
        cells += _accuracy(row.draw, True) + _accuracy(row.vote) + _accuracy(row.best)
        cells += _accuracy(row.pass_at_n, dropped < 1)
        if dropped < 2:
            cells.append(formatting.count(row.figures["tokens_per_problem"]))
            cells.append(formatting.three_digits(row.figures["seconds_per_problem"]))
        cells.append(formatting.three_digits(row.figures["multiple"]))
        table.add_row(_label(row.label), *map(Text, cells))
    return table


def _table(first: str, widest: int = _LABEL) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", max_width=widest, vertical="bottom")
    return table


def _accuracy(estimate: Estimate | None, with_interval: bool = False) -> list[str]:
    if estimate is None:
        return [formatting.NONE, ""] if with_interval else [formatting.NONE]
    value = formatting.percent(estimate.value)
    return [value, formatting.percent_interval(estimate.ends)] if with_interval else [value]


def _differences(pairs: Comparisons, console: Console) -> Iterator[Table]:
    """As many columns a table as there is room for; bold where 0 is outside the interval."""
    left = list(pairs.methods)
    while left:
        layouts = [(number, _LABEL) for number in range(len(left), 0, -1)]
        layouts.insert(0, (len(left), _WIDE_LABEL))
        tables = ((number, _difference_table(pairs, left[:number], w)) for number, w in layouts)
        number, table = next(x for x in tables if x[0] == 1 or _fits(console, x[1]))
        yield table
        left = left[number:]


def _difference_table(pairs: Comparisons, methods: Sequence[str], widest: int) -> Table:
    table = _table("the draw, in points over", widest)
    for method in methods:
        table.add_column(_label(method), justify="right", overflow="fold", max_width=_PAIR)
    for against in pairs.against:
        found = [pairs.cells.get((method, against)) for method in methods]
        if any(cell is not None for cell in found):
            table.add_row(_label(against), *map(_difference, found))
    return table


def _difference(cell: Estimate | None) -> Text:
    if cell is None:
        return Text("")
    text = f"{formatting.points(cell.value)} {formatting.points_interval(cell.ends):>{_INTERVAL}}"
    return Text(text, style="bold" if cell.is_clear else "")


def _label(text: str) -> Text:
    """Nothing in it is markup."""
    return Text(on_one_line(text))


def _fits(console: Console, table: Table) -> bool:
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= (
        console.width
    )
