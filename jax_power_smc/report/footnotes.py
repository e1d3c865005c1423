"""What a reader of the table must know: what its figures are, and what went wrong."""

from collections.abc import Sequence
from typing import Any

from jax_power_smc.report import formatting
from jax_power_smc.report.sanitize import on_one_line
from jax_power_smc.report.summary_rows import RunRow


def notes(rows: Sequence[RunRow], summary: dict[str, Any]) -> list[str]:
    """Sentences, one or two to an entry."""
    over = "problems and seeds" if len(summary["seeds"]) > 1 else "problems"
    lines = [
        f"Accuracies are in percent, with 95% intervals over {over}; "
        "an item that failed counts as wrong.",
        _costs(rows, formatting.seconds(summary["compile_seconds"])),
    ]
    if not summary["complete"]:
        lines.append("The job is not finished; a run counts with the problems that it has done.")
    return lines


def went_wrong(rows: Sequence[RunRow]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What went wrong, and how often for which label; empty if nothing did."""
    counted = (
        ("Items that failed", "failed"),
        ("Answers that could not be graded, and count as wrong", "ungraded"),
    )
    found = [
        (text, [(row.label, row.figures[name]) for row in rows if row.figures[name]])
        for text, name in counted
    ]
    return [(text, counts) for text, counts in found if counts]


def _costs(rows: Sequence[RunRow], compilation: str) -> str:
    if all(row.figures["multiple"] is None for row in rows):
        return (
            f"Compilation took {compilation} in all and is in no other figure; there is no plain "
            "decoding at temperature 1 that costs could be multiples of."
        )
    plain = next(row for row in rows if row.is_plain)
    return (
        f"multiple: seconds per problem over those of {on_one_line(plain.label)}. s/problem has no "
        f"compilation in it, which took {compilation} in all."
    )
