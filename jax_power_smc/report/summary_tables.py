"""The tables of an evaluation: a row for every run, and paired comparisons."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.text import Text

from jax_power_smc.core.sanitize import on_one_line, visible
from jax_power_smc.report import formatting, tables
from jax_power_smc.report.summary_rows import (
    Comparisons,
    Estimate,
    RunSummary,
    comparisons,
    run_summaries,
)
from jax_power_smc.report.tables import Cell, Column, Interval, Table

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
        out.print(Text(visible(line)), soft_wrap=True)


def results(runs: Sequence[RunSummary], problems: int, layout: Layout = "page") -> Table:
    """Accuracies and costs, one row for each run; the layout decides which columns are left out.

    A column counts problems if some run has finished fewer than the ``problems`` of the whole job.
    """
    on_page, narrow = layout == "page", layout == "narrow"
    columns: list[tuple[Column, list[Cell]]] = []

    def add(cell: Callable[[RunSummary], Cell | str], *heading: str, **options: Any) -> None:
        cells = [Cell(x) if isinstance(x, str) else x for x in map(cell, runs)]
        columns.append((Column("\n".join(heading), **options), cells))

    def add_figure(name: str, form: Callable[[Any], str], *heading: str, hint: str = "") -> None:
        add(lambda r: form(r.figures[name]), *heading, hint=hint)

    def two_digits(value: float | None) -> str:
        return formatting.fixed(value, 2)

    first = "sampler" if on_page else "method"
    add(lambda r: on_one_line(r.label), first, is_text=True, max_width=_LABEL)
    add_figure("num_particles", str, "N")
    if any(r.figures["problems"] != problems for r in runs):
        add_figure("problems", "{:,}".format, "problems")
    add(lambda r: _accuracy(r.accuracy["draw"], on_page), "draw", interval="column")
    strings = [r.figures["accuracy_string"] - r.accuracy["draw"].value for r in runs]
    if on_page and max(map(abs, strings)) > 1e-9:
        hint = "The draw, by the plain comparison of strings that the papers used"
        add_figure("accuracy_string", formatting.percent, "draw,", "by strings", hint=hint)
    add(lambda r: _accuracy(r.accuracy.get("vote")), "vote")
    add(lambda r: _accuracy(r.accuracy.get("best")), "best by", "log p")
    pass_at_n: Interval = "column" if layout == "wide" else "none"
    add(lambda r: _accuracy(r.pass_at_n), "pass@N", interval=pass_at_n)
    if on_page:
        hint = "Of the draw, over the items that worked"
        add_figure("mean_log_prob", two_digits, "mean", "log p", hint=hint)
    if on_page and any(r.figures["log_evidence"] is not None for r in runs):
        hint = "Estimate of the normalising constant of the target, over the items that worked"
        add_figure("log_evidence", two_digits, "mean", "log Z", hint=hint)
    if not narrow:
        tokens = ("tokens per", "problem") if on_page else ("tokens",)
        hint = "Through the model, of all particles"
        add_figure("tokens_per_problem", formatting.count, *tokens, hint=hint)
        add_figure("seconds_per_problem", formatting.three_digits, "s/problem")
    add_figure("multiple", formatting.three_digits, "multiple")
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    return Table([column for column, _ in columns], rows)


def comparison_table(
    pairs: Comparisons,
    methods: Sequence[str],
    *,
    problems: int | None = None,
    label_width: int = _LABEL,
) -> Table:
    """The draw of each method, in percentage points over the others; bold where it is clear.

    On a page, ``problems`` is the number of the whole job's: a difference over fewer says so, and a
    clear one has an arrow. In a terminal it is None.
    """

    def cell(method: str, against: str) -> Cell:
        found = pairs.cells.get((method, against))
        if found is None:
            return Cell("")
        text, interval = (
            formatting.points(found.value),
            formatting.interval(found.ends, formatting.points),
        )
        if problems is not None:
            text = ("▲ " if found.ends[0] > 0 else "▼ " if found.ends[1] < 0 else "") + text
            if found.problems != problems:
                interval += f", {found.problems} problems"
        return Cell(text, interval, found.is_clear)

    first = "over" if problems is not None else "the draw, in points over"
    return Table(
        [
            Column(first, is_text=True, max_width=label_width),
            *(Column(on_one_line(m), interval="inline", max_width=_DIFFERENCE) for m in methods),
        ],
        [
            [Cell(on_one_line(against)), *(cell(method, against) for method in methods)]
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


def notes(runs: Sequence[RunSummary], summary: dict[str, Any]) -> list[str]:
    """Sentences below the results that say what the figures are."""
    over = "problems and seeds" if len(summary["seeds"]) > 1 else "problems"
    lines = [
        f"Accuracies are in percent, with 95% intervals over {over}; "
        "an item that failed counts as wrong.",
        _costs(runs, formatting.seconds(summary["compile_seconds"])),
    ]
    if not summary["complete"]:
        lines.append(
            "The job is not finished; each run counts with the problems that it has finished."
        )
    return lines


def went_wrong(runs: Sequence[RunSummary]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What went wrong, with the number of times for each label; empty if nothing did."""
    counted = {
        "Items that failed": "failed",
        "Answers that could not be graded, and count as wrong": "ungraded",
    }
    found = [
        (text, [(run.label, run.figures[name]) for run in runs if run.figures[name]])
        for text, name in counted.items()
    ]
    return [(text, counts) for text, counts in found if counts]


def _costs(runs: Sequence[RunSummary], compilation: str) -> str:
    if all(run.figures["multiple"] is None for run in runs):
        return (
            f"Compilation took {compilation} in all and is in no other figure; there is no plain "
            "decoding at temperature 1 to express costs as multiples of."
        )
    plain = next(run for run in runs if run.is_plain)
    return (
        f"multiple: seconds per problem over those of {on_one_line(plain.label)}. s/problem has no "
        f"compilation in it, which took {compilation} in all."
    )


def _accuracy(estimate: Estimate | None, bold: bool = False) -> Cell:
    if estimate is None:
        return Cell(formatting.NONE)
    interval = formatting.interval(estimate.ends, formatting.percent)
    return Cell(formatting.percent(estimate.value), interval, bold)
