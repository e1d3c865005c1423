"""What to be wary of: degenerate outputs, and items that failed or were not graded."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jax_power_smc.report.load import ItemSummary, ReportData

# Items that are listed as examples.
MOST_EXAMPLES = 8
# The least share of the weight that makes an item an example.
_LEAST_SHARE = 0.005


class FlaggedItem(NamedTuple):
    """An item, and the weight of its degenerate particles."""

    problem: str
    seed: int
    share: float


class DegenerateShares(NamedTuple):
    """Shares of the weight of degenerate particles in one run, averaged over its valid items."""

    run: str
    label: str
    items: int
    loops: float
    very_short: float
    unfinished: float
    worst: list[FlaggedItem]


class Issue(NamedTuple):
    """What is wrong with some items of a run; the first ones as (problem id, seed)."""

    run: str
    label: str
    sentence: str
    items: int
    examples: list[tuple[str, int]]


def degenerate(data: ReportData) -> list[DegenerateShares]:
    """One entry for every run with a valid item, in the order of the tables."""
    made = []
    for run, label in data.labels.items():
        items = [item for item in data.items_of(run) if not item.scores.failed]
        flagged = [
            FlaggedItem(item.scores.item[2], item.scores.item[1], share)
            for item in items
            if (share := _degenerate_share(item)) >= _LEAST_SHARE
        ]
        worst = sorted(flagged, key=lambda item: -item.share)[:MOST_EXAMPLES]
        if items:
            kinds = [[item.loops, item.very_short, item.unfinished] for item in items]
            loops, short, unfinished = np.mean(kinds, axis=0).tolist()
            made.append(DegenerateShares(run, label, len(items), loops, short, unfinished, worst))
    return made


def failures(data: ReportData) -> list[Issue]:
    """Why results are invalid, each sentence once per run."""
    nothing = "no particle has any weight."
    return _issues(data, lambda item: [item.failure or nothing] if item.scores.failed else [])


def ungraded(data: ReportData) -> list[Issue]:
    """Why answers could not be graded, each sentence once per run."""
    return _issues(data, lambda item: item.notes)


def _issues(data: ReportData, sentences: Callable[[ItemSummary], Sequence[str]]) -> list[Issue]:
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for run in data.labels:
        for item in data.items_of(run):
            _, seed, problem = item.scores.item
            for sentence in sentences(item):
                found.setdefault((run, sentence), []).append((problem, seed))
    return [
        Issue(run, data.labels[run], sentence, len(items), items[:MOST_EXAMPLES])
        for (run, sentence), items in found.items()
    ]


def _degenerate_share(item: ItemSummary) -> float:
    """Particles that loop are often unfinished too, so the larger share counts, not the sum."""
    return min(1.0, max(item.loops, item.unfinished) + item.very_short)
