"""From the readings of all items to the table: accuracies, intervals, costs and comparisons."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_power_smc.evaluation.intervals import accuracy_interval, difference_interval
from jax_power_smc.evaluation.scores import ANSWERS, Answer, ItemScores
from jax_power_smc.samplers import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    Sampler,
    WithoutReplacement,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One sampler on all problems, with all seeds.

    Attributes:
      name: its key in the config.
      label: what tables call it.
      sampler: what runs.
    """

    name: str
    label: str
    sampler: Sampler

    @property
    def is_independent(self) -> bool:
        """Whether its particles are independent samples of equal weight."""
        return isinstance(self.sampler, Ancestral | MetropolisHastings)

    @property
    def has_weights(self) -> bool:
        """Whether it is a sampler of the target with weighted particles."""
        return isinstance(self.sampler, PowerSMC | WithoutReplacement)

    def temperature(self, alpha: float) -> float:
        """Of the proposal."""
        if isinstance(self.sampler, Ancestral):
            return self.sampler.temperature
        own = getattr(self.sampler, "proposal_temperature", None)
        return 1 / alpha if own is None else own

    def method(self, answer: Answer) -> str:
        """What a row of the table is called."""
        return {
            "draw": self.label,
            "vote": f"{self.label}, vote",
            "best": f"{self.label}, best by log p",
        }[answer]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The different answers that can be read off its particles."""
        return ANSWERS if self.sampler.num_particles > 1 else ("draw",)


class _Table:
    """The readings of one run, where every problem has all seeds."""

    def __init__(
        self, run: Run, readings: Mapping[tuple[str, int], ItemScores], ids: Sequence[str]
    ):
        self.run, self.ids = run, ids
        seeds = sorted({seed for _, seed in readings})
        self.rows = [[readings[name, seed] for seed in seeds] for name in ids]
        self.all = list(itertools.chain.from_iterable(self.rows))
        self.seconds = sum(r.seconds["prefill"] + r.seconds["decode"] for r in self.all) / len(
            self.all
        )

    def scores(self, value: Callable[[ItemScores], float], ids: Sequence[str] | None = None) -> Any:
        """[problems, seeds], of these problems."""
        place = dict(zip(self.ids, self.rows, strict=True))
        rows = [place[name] for name in (self.ids if ids is None else ids)]
        return np.array([[value(reading) for reading in row] for row in rows], np.float64)

    def mean(self, value: Callable[[ItemScores], float | None]) -> float | None:
        """Over all items that worked and have such a value."""
        values = [value(reading) for reading in self.all if not reading.failed]
        known = [x for x in values if x is not None]
        return float(np.mean(known)) if known else None


def summarize(
    readings: Sequence[ItemScores],
    runs: Sequence[Run],
    ids: Sequence[str],
    seeds: Sequence[int],
    alpha: float,
    device: str,
) -> dict[str, Any]:
    """The content of summary.json, and of the tables.

    A run counts with the problems that it has finished with all seeds, and one without any is left
    out; differences are over the problems that both have.

    Args:
      readings: of the finished items.
      runs: in the order of the table.
      ids: of all problems.
      seeds: of the job.
      alpha: of the target.
      device: that the job ran on.
    """
    tables = [table for run in runs if (table := _table(run, readings, ids, seeds)) is not None]
    base = next((t.seconds for t in tables if _is_plain(t.run.sampler)), None)
    return {
        "device": device,
        "problems": len(ids),
        "seeds": list(seeds),
        "complete": len(readings) == len(runs) * len(ids) * len(seeds),
        "rows": [
            _row(table, answer, alpha, base) for table in tables for answer in table.run.answers
        ],
        "pass_at_k": [row for table in tables for row in _pass_at_k(table)],
        "comparisons": _comparisons(tables),
        "compile_seconds": sum(r.seconds["compile"] for r in readings),
    }


def _table(
    run: Run, readings: Sequence[ItemScores], ids: Sequence[str], seeds: Sequence[int]
) -> _Table | None:
    own = {(r.item[2], r.item[1]): r for r in readings if r.item[0] == run.name}
    whole = [name for name in ids if all((name, seed) in own for seed in seeds)]
    return _Table(run, own, whole) if whole else None


def _is_plain(sampler: Sampler) -> bool:
    """Plain decoding, which costs are multiples of."""
    return sampler == Ancestral(1.0)


def _row(table: _Table, answer: Answer, alpha: float, base: float | None) -> dict[str, Any]:
    run = table.run
    accuracy, low, high = accuracy_interval(table.scores(lambda r: r.answers[answer].correct))
    return {
        "run": run.name,
        "method": run.method(answer),
        "answer": answer,
        "sampler": type(run.sampler).__name__,
        "num_particles": run.sampler.num_particles,
        "alpha": alpha,
        "temperature": run.temperature(alpha),
        "problems": len(table.ids),
        "accuracy": accuracy,
        "ci95": [low, high],
        "accuracy_string": float(
            table.scores(lambda r: r.answers[answer].correct_string).mean(),
        ),
        "mean_log_prob": table.mean(lambda r: r.answers[answer].log_prob),
        "log_evidence": table.mean(lambda r: r.log_evidence),
        "failed": sum(r.failed for r in table.all),
        "ungraded": sum(r.ungraded for r in table.all),
        "degenerate": float(table.scores(lambda r: r.degenerate).mean()),
        "tokens_per_problem": float(np.mean([r.tokens for r in table.all])),
        "seconds_per_problem": table.seconds,
        "multiple": None if not base else table.seconds / base,
    }


def _pass_at_k(table: _Table) -> list[dict[str, Any]]:
    """For k = 1, 2, 4, ... and N."""
    run, num = table.run, table.run.sampler.num_particles
    powers = (2**i for i in range(num.bit_length()))
    rows = []
    for k in sorted({num, *powers}) if num > 1 else ():
        passed = functools.partial(ItemScores.pass_at, k=k, independent=run.is_independent)
        value, low, high = accuracy_interval(table.scores(passed))
        row = {"run": run.name, "method": run.label, "k": k, "value": value, "ci95": [low, high]}
        rows.append(row)
    return rows


def _comparisons(tables: Sequence[_Table]) -> list[dict[str, Any]]:
    """Paired differences of each weighted sampler's draw: over every answer of the others, and over
    the draws of the weighted samplers before it."""
    pairs = []
    weighted = [table for table in tables if table.run.has_weights]
    for place, ours in enumerate(weighted):
        others = [
            (theirs, answer)
            for theirs in tables
            if not theirs.run.has_weights
            for answer in theirs.run.answers
        ] + [(theirs, ANSWERS[0]) for theirs in weighted[:place]]
        for theirs, answer in others:
            pairs += _comparison(ours, theirs, answer)
    return pairs


def _comparison(ours: _Table, theirs: _Table, answer: Answer) -> list[dict[str, Any]]:
    shared = [name for name in ours.ids if name in set(theirs.ids)]
    if not shared:
        return []
    difference, low, high = difference_interval(
        ours.scores(lambda r: r.answers["draw"].correct, shared)
        - theirs.scores(lambda r: r.answers[answer].correct, shared)
    )
    return [
        {
            "method": ours.run.method("draw"),
            "against": theirs.run.method(answer),
            "problems": len(shared),
            "difference": difference,
            "ci95": [low, high],
        }
    ]
