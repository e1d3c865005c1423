"""Notes below the results: what the figures are, and what went wrong."""

from collections.abc import Sequence
from typing import Any

from jax_power_smc.report import formatting
from jax_power_smc.report.sanitize import on_one_line
from jax_power_smc.report.summary_rows import RunSummary


def notes(runs: Sequence[RunSummary], summary: dict[str, Any]) -> list[str]:
    """One or two sentences per entry."""
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
    counted = (
        ("Items that failed", "failed"),
        ("Answers that could not be graded, and count as wrong", "ungraded"),
    )
    found = [
        (text, [(run.label, run.figures[name]) for run in runs if run.figures[name]])
        for text, name in counted
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
