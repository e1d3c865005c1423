"""The tables of an evaluation: a row for every run, and paired comparisons."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.text import Text

from jax_power_smc.report import formatting, tables
from jax_power_smc.report.footnotes import notes, went_wrong
from jax_power_smc.report.sanitize import on_one_line
from jax_power_smc.report.summary_rows import (
    Comparisons,
    Estimate,
    RunSummary,
    comparisons,
    run_summaries,
)
from jax_power_smc.report.tables import Cell, Column, Table

# Where the results are shown. A narrower terminal has no interval of pass@N, and the narrowest no
# costs but the multiple.
Layout: TypeAlias = Literal["page", "wide", "medium", "narrow"]
# Characters of a label before it is folded; the second number applies where there is room.
_LABEL, _WIDE_LABEL = 28, 44
# Characters of a difference with its interval: +100.0 [-100.0, +100.0].
_DIFFERENCE = 23


def show(summary: dict[str, Any]) -> None:
    """Prints what summary.json holds; see ``evaluation.summary.summarize``."""
    out = tables.console()
    runs = run_summaries(summary)
    if not runs:
        print("No run has finished a problem with all its seeds yet.")
        return
    has_pass_at_n = any(run.pass_at_n is not None for run in runs)
    layouts: list[Layout] = ["wide"] if has_pass_at_n else []
    layouts += ["medium", "narrow"]
    made = [results(runs, summary["problems"], layout) for layout in layouts]
    shown = next((table for table in made if tables.fits(out, table)), made[-1])
    for table in [shown, *_fitting_comparisons(comparisons(summary, main_only=True), out)]:
        out.print(tables.to_rich(table))
    lines = notes(runs, summary)
    for text, counts in went_wrong(runs):
        each = (f"{on_one_line(label)} {number:,}" for label, number in counts)
        lines.append(f"{text}: {', '.join(each)}.")
    for line in lines:
        # rich adds no line breaks: a pipe has no width, and a terminal wraps by itself.
        out.print(Text(line), soft_wrap=True)


def results(runs: Sequence[RunSummary], problems: int, layout: Layout = "page") -> Table:
    """Accuracies and costs, one row for each run.

    Args:
      runs: of the summary.
      problems: of the whole job; a column counts them if some run has finished fewer.
      layout: where the table is shown, which decides on columns that may be left out.
    """
    on_page, narrow = layout == "page", layout == "narrow"
    by_strings = any(abs(r.figures["accuracy_string"] - r.draw.value) > 1e-9 for r in runs)
    with_evidence = any(r.figures["log_evidence"] is not None for r in runs)
    columns: list[tuple[bool, Column, list[Cell]]] = []

    def add(column: Column, cells: Sequence[Cell | str], shown: bool = True) -> None:
        columns.append((shown, column, [Cell(c) if isinstance(c, str) else c for c in cells]))

    add(
        Column("sampler" if on_page else "method", is_text=True, max_width=_LABEL),
        [_label(r.label) for r in runs],
    )
    add(Column("N"), [str(r.num_particles) for r in runs])
    add(
        Column("problems"),
        [f"{r.problems:,}" for r in runs],
        any(r.problems != problems for r in runs),
    )
    add(Column("draw", interval="column"), [_accuracy(r.draw, bold=on_page) for r in runs])
    add(
        Column(
            "draw,\nby strings",
            hint="The draw, by the plain comparison of strings that the papers used",
        ),
        [formatting.percent(r.figures["accuracy_string"]) for r in runs],
        on_page and by_strings,
    )
    add(Column("vote"), [_accuracy(r.vote) for r in runs])
    add(Column("best by\nlog p"), [_accuracy(r.best) for r in runs])
    add(
        Column("pass@N", interval="column" if layout == "wide" else "none"),
        [_accuracy(r.pass_at_n) for r in runs],
    )
    add(
        Column("mean\nlog p", hint="Of the draw, over the items that worked"),
        [formatting.fixed(r.log_probs["draw"], 2) for r in runs],
        on_page,
    )
    add(
        Column(
            "mean\nlog Z",
            hint="Estimate of the normalising constant of the target, over the items that worked",
        ),
        [formatting.fixed(r.figures["log_evidence"], 2) for r in runs],
        on_page and with_evidence,
    )
    add(
        Column(
            "tokens per\nproblem" if on_page else "tokens",
            hint="Through the model, of all particles",
        ),
        [formatting.count(r.figures["tokens_per_problem"]) for r in runs],
        not narrow,
    )
    add(
        Column("s/problem"),
        [formatting.three_digits(r.figures["seconds_per_problem"]) for r in runs],
        not narrow,
    )
    add(Column("multiple"), [formatting.three_digits(r.figures["multiple"]) for r in runs])
    kept = [(column, cells) for shown, column, cells in columns if shown]
    rows = list(zip(*(cells for _, cells in kept), strict=True))
    return Table([column for column, _ in kept], rows)


def comparison_table(
    pairs: Comparisons,
    methods: Sequence[str],
    *,
    problems: int | None = None,
    label_width: int = _LABEL,
) -> Table:
    """The draw of each method, in percentage points over the others; bold where it is clear.

    Args:
      pairs: the comparisons.
      methods: a column for each.
      problems: on a page, those of the whole job: a difference over fewer says so, and a clear one
        has an arrow. None in a terminal.
      label_width: characters of a label before it is folded.
    """

    def cell(method: str, against: str) -> Cell:
        found = pairs.cells.get((method, against))
        if found is None:
            return Cell("")
        text, interval = formatting.points(found.value), formatting.points_interval(found.ends)
        if problems is not None:
            text = ("▲ " if found.ends[0] > 0 else "▼ " if found.ends[1] < 0 else "") + text
            if found.problems != problems:
                interval += f", {found.problems} problems"
        return Cell(text, interval, found.is_clear)

    first = "over" if problems is not None else "the draw, in points over"
    return Table(
        [
            Column(first, is_text=True, max_width=label_width),
            *(Column(_label(m), interval="inline", max_width=_DIFFERENCE) for m in methods),
        ],
        [
            [Cell(_label(against)), *(cell(method, against) for method in methods)]
            for against in pairs.against
            if any((method, against) in pairs.cells for method in methods)
        ],
    )


def _fitting_comparisons(pairs: Comparisons, out: Console) -> Iterator[Table]:
    """As many columns per table as there is room for."""
    left = list(pairs.methods)
    while left:
        layouts = [(len(left), _WIDE_LABEL), *((n, _LABEL) for n in range(len(left), 0, -1))]
        made = ((n, comparison_table(pairs, left[:n], label_width=w)) for n, w in layouts)
        number, table = next(x for x in made if x[0] == 1 or tables.fits(out, x[1]))
        yield table
        left = left[number:]


def _accuracy(estimate: Estimate | None, bold: bool = False) -> Cell:
    if estimate is None:
        return Cell(formatting.NONE)
    return Cell(
        formatting.percent(estimate.value), formatting.percent_interval(estimate.ends), bold
    )


def _label(text: str) -> str:
    return on_one_line(text)
