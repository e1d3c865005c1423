"""What a reader of the table must know: what its figures are, and what went wrong."""

from collections.abc import Sequence
from typing import Any

from jax_power_smc.report import numbers
from jax_power_smc.report.rows import RunRow
from jax_power_smc.report.visible import on_one_line


def notes(rows: Sequence[RunRow], summary: dict[str, Any]) -> list[str]:
    """Sentences, one or two to an entry; the last ones only where there is reason for them."""
    over = "problems and seeds" if len(summary["seeds"]) > 1 else "problems"
    lines = [
        f"Accuracies are in percent, with 95% intervals over {over}; "
        "an item that failed counts as wrong.",
        _costs(rows, numbers.seconds(summary["compile_seconds"])),
    ]
    for name, text in (
        ("failed", "Items that failed"),
        ("ungraded", "Answers that could not be graded, and count as wrong"),
    ):
        found = [(row.label, row.figures[name]) for row in rows if row.figures[name]]
        if found:
            each = ", ".join(f"{on_one_line(label)} {number:,}" for label, number in found)
            lines.append(f"{text}: {each}.")
    if not summary["complete"]:
        lines.append("The job is not finished; a run counts with the problems that it has done.")
    return lines


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
