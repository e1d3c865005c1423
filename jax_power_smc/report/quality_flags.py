"""What to be wary of: degenerate outputs, and items that failed or were not graded."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jax_power_smc.report.load import ItemSummary, ReportData

# Items that are listed as examples.
MOST_EXAMPLES = 8
# The least share of the weight that makes an item an example.
_LEAST_SHARE = 0.005


@dataclasses.dataclass(frozen=True)
class FlaggedItem:
    """An item with degenerate outputs.

    Attributes:
      problem, seed: of the item.
      share: weight of its degenerate particles.
    """

    problem: str
    seed: int
    share: float


@dataclasses.dataclass(frozen=True)
class DegenerateShares:
    """Shares of the weight of degenerate particles in one run, averaged over the valid items.

    Attributes:
      run, label: of the run.
      items: number of valid ones.
      loops, very_short, unfinished: by kind.
      worst: the items with the largest shares.
    """

    run: str
    label: str
    items: int
    loops: float
    very_short: float
    unfinished: float
    worst: list[FlaggedItem]


@dataclasses.dataclass(frozen=True)
class Issue:
    """What is wrong with some items of a run.

    Attributes:
      run, label: of the run.
      sentence: what is wrong.
      items: how many are affected.
      examples: the first ones, as (problem id, seed).
    """

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
        if items:
            worst = sorted(items, key=lambda item: -_degenerate_share(item))[:MOST_EXAMPLES]
            made.append(
                DegenerateShares(
                    run=run,
                    label=label,
                    items=len(items),
                    loops=float(np.mean([item.loops for item in items])),
                    very_short=float(np.mean([item.very_short for item in items])),
                    unfinished=float(np.mean([item.unfinished for item in items])),
                    worst=[
                        _flagged(item) for item in worst if _degenerate_share(item) >= _LEAST_SHARE
                    ],
                )
            )
    return made


def failures(data: ReportData) -> list[Issue]:
    """Why results are invalid, each sentence once per run."""

    def sentences(item: ItemSummary) -> list[str]:
        if not item.scores.failed:
            return []
        return ["no particle has any weight." if item.failure is None else item.failure]

    return _issues(data, sentences)


def ungraded(data: ReportData) -> list[Issue]:
    """Why answers could not be graded, each sentence once per run."""
    return _issues(data, lambda item: item.notes)


def _issues(data: ReportData, sentences: Callable[[ItemSummary], Sequence[str]]) -> list[Issue]:
    found: dict[tuple[str, str], list[ItemSummary]] = {}
    for run in data.labels:
        for item in data.items_of(run):
            for sentence in sentences(item):
                found.setdefault((run, sentence), []).append(item)
    return [
        Issue(
            run=run,
            label=data.labels[run],
            sentence=sentence,
            items=len(items),
            examples=[(item.scores.item[2], item.scores.item[1]) for item in items[:MOST_EXAMPLES]],
        )
        for (run, sentence), items in found.items()
    ]


def _degenerate_share(item: ItemSummary) -> float:
    """Particles that loop are often unfinished too, so the larger share counts, not the sum."""
    return max(item.loops, item.unfinished) + item.very_short


def _flagged(item: ItemSummary) -> FlaggedItem:
    _, seed, problem = item.scores.item
    return FlaggedItem(problem, seed, min(1.0, _degenerate_share(item)))
