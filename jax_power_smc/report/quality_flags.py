"""What a reader should distrust: degenerate outputs, and items that failed or were not graded."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jax_power_smc.report.load import Item, ReportData

# Items that are named under one heading.
MOST_NAMED = 8
# Share of the weight from which on an item is worth naming.
_WORTH = 0.005


@dataclasses.dataclass(frozen=True)
class Named:
    """An item under some heading.

    Attributes:
      problem, seed: which.
      share: weight of what the heading is about.
    """

    problem: str
    seed: int
    share: float


@dataclasses.dataclass(frozen=True)
class Degenerate:
    """One run; all are shares of the weight, averaged over the items that worked.

    Attributes:
      run, label: which.
      items: that worked.
      loops, very_short, unfinished: of such particles.
      worst: the items with most of all three.
    """

    run: str
    label: str
    items: int
    loops: float
    very_short: float
    unfinished: float
    worst: list[Named]


@dataclasses.dataclass(frozen=True)
class Complaint:
    """One sentence about some items of a run.

    Attributes:
      run, label: which.
      sentence: what is wrong.
      items: how many.
      named: the first ones, as (problem id, seed).
    """

    run: str
    label: str
    sentence: str
    items: int
    named: list[tuple[str, int]]


def degenerate(data: ReportData) -> list[Degenerate]:
    """A row for every run with an item that worked, in the order of the table."""
    made = []
    for run, label in data.labels.items():
        items = [item for item in data.of(run) if not item.reading.failed]
        if items:
            bad = sorted(items, key=lambda item: -_bad(item))[:MOST_NAMED]
            made.append(
                Degenerate(
                    run=run,
                    label=label,
                    items=len(items),
                    loops=float(np.mean([item.loops for item in items])),
                    very_short=float(np.mean([item.very_short for item in items])),
                    unfinished=float(np.mean([item.unfinished for item in items])),
                    worst=[_named(item) for item in bad if _bad(item) >= _WORTH],
                )
            )
    return made


def failures(data: ReportData) -> list[Complaint]:
    """Why results mean nothing, each sentence once per run."""

    def said(item: Item) -> list[str]:
        if not item.reading.failed:
            return []
        return ["no particle has any weight." if item.failure is None else item.failure]

    return _complaints(data, said)


def not_graded(data: ReportData) -> list[Complaint]:
    """Why answers could not be judged, each sentence once per run."""
    return _complaints(data, lambda item: item.notes)


def _complaints(data: ReportData, said: Callable[[Item], Sequence[str]]) -> list[Complaint]:
    found: dict[tuple[str, str], list[Item]] = {}
    for run in data.labels:
        for item in data.of(run):
            for sentence in said(item):
                found.setdefault((run, sentence), []).append(item)
    return [
        Complaint(
            run=run,
            label=data.labels[run],
            sentence=sentence,
            items=len(items),
            named=[(item.reading.item[2], item.reading.item[1]) for item in items[:MOST_NAMED]],
        )
        for (run, sentence), items in found.items()
    ]


def _bad(item: Item) -> float:
    """A particle that loops is often unfinished too: the larger counts, and not the sum."""
    return max(item.loops, item.unfinished) + item.very_short


def _named(item: Item) -> Named:
    _, seed, problem = item.reading.item
    return Named(problem, seed, min(1.0, _bad(item)))
